"""Plans as command lines of other programs: known options only, and every byte where the plan has it."""

import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import pytest
from sim_examples import round_machine

from sim.cli import main
from sim.cost import Setup
from sim.planning import command, plan
from sim.planning.export import TARGETS, checkpoint_of, export_plan
from sim.planning.export.programs import (
    ServedSetup,
    expert_server,
    groupings,
    known_flags,
    llama_server,
    name_of_width,
    num_layers_on_host,
    paging_server,
    prefetching_server,
    reading_server,
)
from sim.planning.export.programs.shell_command import ShellCommand
from sim.planning.policies import PolicyGrid
from sim.problem import Hardware, Model, Problem, Workload
from sim.schedule import MemoryPart, Place, Tier
from traces.errors import InputError

CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "first_k_dense_replace": 1,
    "intermediate_size": 192,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "torch_dtype": "bfloat16",
}
LAYERS_WITH_EXPERTS = range(1, 6)


def problem(num_devices=1, **changes):
    model = Model.of_config({**CONFIG, **changes}, "small", "a test")
    return Problem(model, round_machine(num_devices), Workload.fixed(40, 8))


def setting(schedule, checkpoint="org/name", batch=4, devices=1, **policy):
    one_batch = {"batch_size": batch, "micro_batch_size": batch}
    return ServedSetup(Setup.of(problem(devices), schedule, **one_batch, **policy), checkpoint)


LAUNCHES = [
    (llama_server, setting("n-cpu-moe", experts_on_device=0.4)),
    (llama_server, setting("n-cpu-moe", experts_on_device=0.4, prefill_experts="cpu")),
    (llama_server, setting("n-cpu-moe", batch=1, host_layers=[3, 5], kv_bits=8, weight_bits=4.5)),
    (llama_server, setting("n-cpu-moe", batch=1, experts_on_device=0.4, prefill_experts="cpu")),
    (llama_server, setting("n-cpu-moe", host_layers=[3, 5])),
    (llama_server, setting("n-cpu-moe", batch=100, layers_on_host=[0, 2], experts_on_device=0.5)),
    (prefetching_server, setting("hybrid", attention="gpu", kv_on_device=1, experts_on_device=0.6, deal_experts=True)),
    (
        reading_server,
        setting(
            "hybrid", attention="gpu", kv_on_device=1, experts_on_device=0.6, experts_fetched=0.4, deal_experts=True
        ),
    ),
    (paging_server, setting("expert-cache", experts_on_device=0.5, kv_bits=8)),
    (expert_server, setting("cpu-experts", experts_on_device=0.5, defer_experts=1, weight_bits=4)),
    (expert_server, setting("cpu-experts", experts_on_device=0.3, deal_experts=True)),
]


def commands(launch, asked):
    told = launch(asked)
    return [one for one in (told.serve, told.measure) if one is not None]


class TestOptions:
    @pytest.mark.parametrize(("launch", "asked"), LAUNCHES)
    def test_are_all_known_to_the_program(self, launch, asked):
        for one in commands(launch, asked):
            known = known_flags()[one.known_as or one.program]
            assert set(one.flags) <= set(known.flags)
            assert known.version
            assert known.source

    def test_each_known_one_is_used_somewhere(self):
        used = {}
        for launch, asked in LAUNCHES:
            for one in commands(launch, asked):
                used.setdefault(one.known_as or one.program, set()).update(one.flags)
        assert used == {name: set(known.flags) for name, known in known_flags().items()}

    def test_a_shell_takes_them_as_they_were_meant(self):
        path = "my models/it's.gguf"
        one = llama_server(setting("n-cpu-moe", path, host_layers=[2, 4], experts_on_device=1)).serve
        for text in (str(one), " ".join(line.removesuffix("\\") for line in one.lines(60))):
            words = shlex.split(text)
            assert words[words.index("--model") + 1] == path
            assert re.search(words[words.index("--override-tensor") + 1].removesuffix("=CPU"), "blk.3.ffn_up_exps.bias")

    def test_only_what_the_project_writes_itself_is_worked_out_by_the_shell(self):
        text = str(ShellCommand("program", {"--model": "$(rm file)"}))
        assert shlex.split(text) == ["program", "--model", "$(rm file)"]
        assert "'$(rm file)'" in text

    def test_lines_are_no_longer_than_asked_and_end_in_a_continuation(self):
        *before, last = llama_server(setting("n-cpu-moe", experts_on_device=0.4)).serve.lines(80)
        assert all(len(line) <= 80 and line.endswith(" \\") for line in before)
        assert not last.endswith("\\")

    @pytest.mark.parametrize("program", ["llama-server", "llama-batched-bench", "llama-bench"])
    def test_the_llama_cpp_of_this_machine_has_them(self, program):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        text = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
        assert {flag for flag in known_flags()[program].flags if flag not in text} == set()

    def test_the_vllm_of_this_machine_has_them(self):
        arguments = pytest.importorskip("vllm.engine.arg_utils", reason="vllm is not installed")
        utils = pytest.importorskip("vllm.utils.argparse_utils")
        parser = arguments.EngineArgs.add_cli_args(utils.FlexibleArgumentParser())
        _all_are_taken(parser, "vllm serve")

    @pytest.mark.parametrize(("package", "name"), [("sglang", ""), ("sglang-kt", " (sglang-kt)")])
    def test_the_sglang_of_this_machine_has_them(self, package, name):
        try:
            version(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
        from argparse import ArgumentParser

        from sglang.srt.server_args import ServerArgs

        parser = ArgumentParser()
        ServerArgs.add_cli_args(parser)
        _all_are_taken(parser, f"python -m sglang.launch_server{name}")


def _all_are_taken(parser, program):
    text = parser.format_help()
    assert {flag for flag in known_flags()[program].flags if flag not in text} == set()


class TestWidths:
    @pytest.mark.parametrize(("bits", "name"), [(4, "q4_0"), (4.5, "q4_0"), (8, "q8_0"), (8.5, "q8_0"), (16, "f16")])
    def test_the_narrowest_that_is_wide_enough(self, bits, name):
        assert name_of_width("llama-cache", bits)[0] == name

    def test_the_widest_where_none_is(self):
        assert name_of_width("kt-method", 32) == ("BF16", 16)

    @pytest.mark.parametrize("kind", ["llama-cache", "llama-weights"])
    def test_of_llama_cpp_are_those_of_the_gguf_package(self, kind):
        gguf = pytest.importorskip("gguf", reason="gguf is not installed")
        from sim.planning.export.programs.shell_command import widths

        for name, bits in widths()[kind].items():
            numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
            assert bits == size * 8 / numbers, name


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    """Names and bytes of a GGUF file's tensors, as converters write them: 16 bits, and experts in Q8_0."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    import numpy as np

    hidden, width, experts = (CONFIG[name] for name in ("hidden_size", "moe_intermediate_size", "n_routed_experts"))
    found = {}
    for bits, kind in ((16, gguf.GGMLQuantizationType.F16), (8.5, gguf.GGMLQuantizationType.Q8_0)):
        path = tmp_path_factory.mktemp("gguf") / "small.gguf"
        writer = gguf.GGUFWriter(path, "deepseek2")
        writer.add_tensor("token_embd.weight", np.zeros((CONFIG["vocab_size"], hidden), np.float16))
        for layer in range(CONFIG["num_hidden_layers"]):
            writer.add_tensor(f"blk.{layer}.attn_output.weight", np.zeros((hidden, hidden), np.float16))
            if layer not in LAYERS_WITH_EXPERTS:
                writer.add_tensor(f"blk.{layer}.ffn_up.weight", np.zeros((hidden, hidden), np.float16))
                continue
            writer.add_tensor(f"blk.{layer}.ffn_gate_inp.weight", np.zeros((experts, hidden), np.float32))
            writer.add_tensor(f"blk.{layer}.ffn_up_shexp.weight", np.zeros((width, hidden), np.float16))
            for name, rows, columns in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
                packed = gguf.quants.quantize(np.zeros((experts, rows, columns), np.float32), kind)
                writer.add_tensor(f"blk.{layer}.ffn_{name}_exps.weight", packed, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found[bits] = {one.name: int(one.n_bytes) for one in gguf.GGUFReader(path).tensors}
    return found


class TestBytesOfLlamaCpp:
    """What its options leave in host memory, of a GGUF file's own tensors."""

    @staticmethod
    def in_host_memory(serve, sizes):
        cpu_moe, override = serve.options["--n-cpu-moe"], serve.options["--override-tensor"]
        experts = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
        patterns = [rf"blk\.{layer}{experts}" for layer in range(cpu_moe or 0)]
        patterns += [override.removesuffix("=CPU")] if override else []
        return sum(size for name, size in sizes.items() if any(re.search(one, name) for one in patterns))

    @pytest.mark.parametrize("bits", [16, 8.5])
    @pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.9, 1])
    def test_experts_of_the_first_layers(self, tensors, bits, share):
        asked = setting("n-cpu-moe", experts_on_device=share, weight_bits=bits)
        serve = llama_server(asked).serve
        planned = asked.setup.memory.tiers()[Tier.HOST].get(MemoryPart.HOST_EXPERTS, 0)
        assert self.in_host_memory(serve, tensors[bits]) == planned
        assert serve.options["--override-tensor"] is None

    @pytest.mark.parametrize("layers", [[0, 3], [1, 2], [3, 5], [4, 6]])
    def test_experts_of_any_layers(self, tensors, layers):
        asked = setting("n-cpu-moe", host_layers=layers)
        serve = llama_server(asked).serve
        planned = asked.setup.memory.tiers()[Tier.HOST][MemoryPart.HOST_EXPERTS]
        assert self.in_host_memory(serve, tensors[16]) == planned
        assert (serve.options["--override-tensor"] is None) == (layers[0] <= 1)

    def test_layers_that_the_host_runs_whole(self):
        serve = llama_server(setting("n-cpu-moe", layers_on_host=[0, 2], experts_on_device=1)).serve
        assert serve.options["--n-gpu-layers"] == 7 - 2

    def test_what_it_has_elsewhere_is_said(self):
        notes = " ".join(llama_server(setting("n-cpu-moe")).notes)
        assert "token embedding (0.00 GB) is in host memory, where the plan has it on the device" in notes


class TestLlamaCpp:
    def test_contexts_of_all_requests_in_multiples_of_256_tokens(self):
        serve = llama_server(setting("n-cpu-moe", batch=3)).serve
        assert (serve.options["--ctx-size"], serve.options["--parallel"]) == (3 * 256, 3)

    def test_a_step_of_many_requests_copies_no_experts_of_the_host(self):
        few, many, on_host = (
            llama_server(setting("n-cpu-moe", batch=batch, **more)).serve.environment
            for batch, more in ((31, {}), (32, {}), (32, {"prefill_experts": "cpu"}))
        )
        assert (few, many, on_host) == ({}, {"GGML_OP_OFFLOAD_MIN_BATCH": "33"}, {})

    def test_one_request_is_measured_by_llama_bench(self):
        assert llama_server(setting("n-cpu-moe", batch=1)).measure.options["--n-gpu-layers"] == 999
        assert llama_server(setting("n-cpu-moe", batch=1)).measure.program == "llama-bench"
        assert llama_server(setting("n-cpu-moe", batch=2)).measure.program == "llama-batched-bench"


class TestVllm:
    def test_groupings_hold_each_number_of_layers_they_are_for(self):
        found = groupings(6, LAYERS_WITH_EXPERTS)
        assert set(found) == {1, 2, 3, 4, 5}
        for count, groups in found.items():
            assert len(set(groups.layers(6)).intersection(LAYERS_WITH_EXPERTS)) == count

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    @pytest.mark.parametrize("fetched", [False, True])
    def test_bytes_in_host_memory_are_the_plans(self, count, fetched):
        share = count / 5
        more = {"experts_fetched": share} if fetched else {}
        places = {"attention": "gpu", "kv_on_device": 1, "experts_on_device": 1 - share, "deal_experts": True, **more}
        asked = setting("hybrid", **places)
        assert num_layers_on_host(asked) == count
        planned = asked.setup.memory.tiers()[Tier.HOST][MemoryPart.STREAMED_WEIGHTS]
        each = asked.setup.problem.model.layers[1].experts_bytes(16)
        assert planned == count * each
        if fetched:
            options = reading_server(asked).serve.options
            gib = float(options["--cpu-offload-gb"])
            assert gib * 2**30 <= planned
            assert planned / 2**30 - gib < 0.001
        else:
            options = prefetching_server(asked).serve.options
            size, offloaded = options["--offload-group-size"], options["--offload-num-in-group"]
            layers = [layer for layer in LAYERS_WITH_EXPERTS if layer % size >= size - offloaded]
            assert len(layers) * each == planned

    def test_nothing_is_said_of_offloading_where_all_is_on_the_device(self):
        places = {"attention": "gpu", "kv_on_device": 1, "experts_on_device": 1}
        for launch in (prefetching_server, reading_server):
            assert "offload" not in str(launch(setting("hybrid", **places)).serve)


class TestKTransformers:
    def test_the_share_of_uneven_layers_is_rounded_down_to_the_plans_experts(self):
        asked = setting("cpu-experts", experts_on_device=0.3, deal_experts=True)
        assert len(set(asked.resident_experts)) > 1
        ratio = float(expert_server(asked).serve.options["--kt-gpu-experts-ratio"])
        assert int(ratio * 5 * 8) == sum(asked.resident_experts)


SIZES = {"micro_batch_sizes": (1, 8), "num_micro_batches": (1, 4), "expert_values": 3}


@pytest.fixture(scope="module")
def choice():
    """CGOPipe's plan for a small device, which is none that another program can run, and llama.cpp's."""
    tight = round_machine(device_memory__capacity=1.5e6)
    asked = replace(problem(), hardware=tight)
    first = plan(asked, ["cgopipe"], jobs=1, num_requests=8, grid=PolicyGrid(**SIZES, attention=Place.CPU))
    second = plan(asked, ["n-cpu-moe"], jobs=1, num_requests=8, grid=PolicyGrid(**SIZES))
    return replace(first, plans={**first.plans, **second.plans})


class TestExport:
    @pytest.mark.parametrize("target", TARGETS)
    def test_predicts_what_the_program_can_do_and_not_the_plan(self, choice, target):
        found = export_plan(choice, target, "org/name")
        assert found.best.setup.shortages == []
        assert found.best.throughput_tokens_per_s > 0
        assert found.best.num_requests == found.best.setup.batch.num_requests
        said = {one.matter: one for one in found.differences}
        assert said["attention in decode"].plan == "on the host"
        assert said["attention in decode"].there == "on the device"
        assert said["KV cache"].plan == "in host memory"

    def test_a_plan_that_the_program_can_run_is_exported_as_it_is(self, choice):
        only = replace(choice, plans={"n-cpu-moe": choice.plans["n-cpu-moe"]})
        found = export_plan(only, "llama.cpp", "org/name")
        assert found.best == only.best
        assert found.differences == ()
        assert found.of_plan == 1

    def test_ktransformers_computes_prompts_where_the_experts_are(self, choice):
        assert export_plan(choice, "ktransformers", "org/name").best.policy.prefill_experts is Place.CPU

    def test_what_works_on_one_device_only_is_refused_on_several(self, choice):
        several = replace(choice, problem=problem(2))
        with pytest.raises(InputError, match=r"--export sglang: its paged experts work on one device; round has 2: "):
            export_plan(several, "sglang", "org/name")

    def test_nothing_that_fits_is_an_error_that_says_what_lacks(self, choice):
        tiny = round_machine(device_memory__capacity=2e5)
        with pytest.raises(InputError, match=r"--export vllm: nothing that it can do fits"):
            export_plan(replace(choice, problem=replace(choice.problem, hardware=tiny)), "vllm", "org/name")

    def test_the_command_offers_every_target(self):
        assert tuple(TARGETS) == command.EXPORTS


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"),
        ("Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B"),
        ("some/folder/config.json", "some/folder"),
        ("model.gguf", "model.gguf"),
        ("org/name@main", "org/name@main"),
    ],
)
def test_where_the_weights_are(given, found):
    assert checkpoint_of(given) == found


def test_presets_name_their_checkpoints():
    without = [name for name in Model.presets() if "/" not in checkpoint_of(name)]
    assert without == ["qwen3.6-35b-a3b"]  # a configuration that Transformers has as its default


class TestCommand:
    ASKED = (
        "plan",
        "--model",
        "olmoe-1b-7b",
        "--hardware",
        "t4",
        "--prompt-len",
        "60",
        "--gen-len",
        "5",
        "--jobs",
        "1",
    )

    def test_prints_a_line_to_copy_whatever_the_width(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        quick = ("--schedules", "n-cpu-moe", "--batch", "2", "--quick")
        assert main([*self.ASKED, *quick, "--export", "llama.cpp"]) == 0
        text = capsys.readouterr().out
        begin = text.index("llama-server --model")
        words = shlex.split(text[begin:].partition("\n\n")[0].replace("\\\n", " "))
        assert words[words.index("--parallel") + 1] == "2"

    def test_requests_are_not_exported(self, capsys):
        assert main([*self.ASKED, "--requests", "5", "--export", "vllm"]) == 2
        assert "--export" in capsys.readouterr().err


def test_real_machines_are_exported_for():
    hardware = Hardware.load("rtx4090")
    asked = Problem(Model.load("olmoe-1b-7b"), hardware, Workload.fixed(60, 8))
    found = plan(asked, ["n-cpu-moe"], jobs=1, num_requests=1, grid=PolicyGrid(**SIZES))
    assert "--n-gpu-layers all" in str(export_plan(found, "llama.cpp", "x.gguf").launch.serve)
