"""`check`: files of other programs as these write them, and what is answered."""

import csv
import io
import json
from dataclasses import replace

import pytest

from sim.cli import main
from sim.comparison.check import Measurement, RunSetting, Speed, Verdict, check_measured, read_measurements
from sim.comparison.check.as_run import as_run
from sim.comparison.check.first_try import first_try
from sim.comparison.check.resources import PARTS, most_used
from sim.cost import Setup
from sim.problem import Model, Problem
from sim.simulation import predict
from traces.errors import InputError

MODEL = Model.load("qwen3-30b-a3b")
PROBLEM = Problem.of(MODEL, "rtx3090", prompt_len=128, gen_len=9)

BENCH = {
    **{"build_number": 7000, "cpu_info": "a CPU", "gpu_info": "NVIDIA GeForce RTX 3090", "backends": "CUDA"},
    **{"model_type": "qwen3moe 30B.A3B BF16", "model_size": 61_064_245_248, "model_n_params": 30_532_122_624},
    **{"n_batch": 2048, "n_ubatch": 512, "n_threads": 8, "type_k": "f16", "type_v": "f16", "n_gpu_layers": 99},
    **{"n_cpu_moe": 40, "tensor_buft_overrides": "none", "use_mmap": True, "no_op_offload": 0},
    **{"n_prompt": 0, "n_gen": 8, "n_depth": 0, "avg_ns": 1_000_000_000, "avg_ts": 12.5},
}
SERVED = {
    **{"backend": "vllm", "model_id": "Qwen/Qwen3-30B-A3B", "num_prompts": 8, "request_rate": "inf"},
    **{"max_concurrency": None, "duration": 10.0, "completed": 8, "total_input_tokens": 1024},
    **{"total_output_tokens": 72, "output_throughput": 7.2, "mean_ttft_ms": 900.0, "mean_tpot_ms": 400.0},
}
OFFLINE = {
    **{"backend": "engine", "successful_requests": 4, "total_latency": 2.0, "total_input_tokens": 512},
    **{"total_output_tokens": 36, "output_throughput": 18.0, "total_throughput": 274.0},
}
TIMED = {
    **{"elapsed_time": 4.0, "num_requests": 2, "total_num_tokens": 274},
    **{"requests_per_second": 0.5, "tokens_per_second": 68.5},
}


@pytest.fixture
def read(tmp_path):
    """What a file with these records says."""

    def from_text(text, name="bench.json"):
        path = tmp_path / name
        path.write_text(text)
        return read_measurements(path)

    return from_text


def bench(**changed):
    return json.dumps([{**BENCH, **changed}])


def as_csv(record):
    out = io.StringIO()
    writer = csv.DictWriter(out, record, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerow({key: int(value) if isinstance(value, bool) else value for key, value in record.items()})
    return out.getvalue()


class TestLlamaBench:
    def test_json_lines_and_csv_say_the_same(self, read):
        whole = read(bench())
        assert whole == read(json.dumps(BENCH) + "\n\n") == read(as_csv(BENCH))
        (one,) = whole
        assert (one.speed, one.tokens_per_s, one.requests, one.prompt_len, one.gen_len) == (Speed.DECODE, 12.5, 1, 1, 9)
        assert (one.setting.threads, one.setting.is_mapped, one.setting.host_layers) == (8, True, (0, 40))

    def test_tests_of_prompts_of_depth_and_of_both(self, read):
        (prompt,) = read(bench(n_prompt=512, n_gen=0, avg_ts=300.0))
        assert (prompt.speed, prompt.tokens_per_s, prompt.prompt_len, prompt.gen_len) == (Speed.PREFILL, 300.0, 512, 1)
        (deep,) = read(bench(n_depth=4096))
        assert (deep.speed, deep.prompt_len) == (Speed.DECODE, 4096)
        (both,) = read(bench(n_prompt=24, n_gen=8, avg_ts=40.0))
        assert (both.speed, both.tokens_per_s) == (Speed.WHOLE, 10.0)
        with pytest.raises(InputError, match=r"bench.json: n_depth: 64"):
            read(bench(n_prompt=512, n_gen=0, n_depth=64))

    def test_patterns_of_tensors_are_layers(self, read):
        (one,) = read(bench(n_cpu_moe=0, tensor_buft_overrides=r"blk\.(1[0-9])\.ffn_.*_exps\.=CPU"))
        assert one.setting.host_layers == (10, 20)
        (one,) = read(bench(n_cpu_moe=0, tensor_buft_overrides="blk.0.ffn_gate_exps=CPU;blk.1.attn_q=CUDA0"))
        assert one.setting.host_layers == (0, 0), "one of three matrices is not the experts of a layer"
        with pytest.raises(InputError, match="not one after another"):
            read(bench(n_cpu_moe=0, tensor_buft_overrides=r"blk\.(1|5)\.ffn_.*_exps=CPU"))

    @pytest.mark.parametrize(("kind", "bits"), [("f16", 16.0), ("q8_0", 12.25), ("q4_0", 10.25)])
    def test_the_cache_is_as_wide_as_its_types(self, read, kind, bits):
        (one,) = read(bench(type_v=kind))
        assert as_run(PROBLEM, one).setup.policy.kv_bits == bits

    def test_what_cannot_be_read_is_named(self, read):
        for text, said in (
            (bench(type_k="q9"), "type_k: 'q9' is unknown"),
            (bench(avg_ts="fast"), "avg_ts: 'fast' is not a number"),
            (bench(avg_ts=0), "tokens a second, above 0"),
            ("[]", "JSON objects"),
            ("", "is empty"),
            ('{"a": 1}', "known: llama-bench"),
            ('{"a": 1', "line 1 is not JSON"),
            ('{"schedule": "zero", "policy": {}, "explanation": {}}', "give --measured"),
        ):
            with pytest.raises(InputError, match=r"bench.json: ") as refused:
                read(text)
            assert said in str(refused.value)


class TestAsItRan:
    def test_layers_stay_where_the_file_says(self, read):
        (one,) = read(bench())
        run = as_run(PROBLEM, one)
        assert run.setup.schedule.name == "n-cpu-moe"
        assert (run.setup.policy.host_layers, run.setup.last_step) == ((0, 40), 8)
        assert run.setup.problem.model == MODEL

    def test_some_layers_may_be_on_the_host_whole(self, read):
        (one,) = read(bench(n_gpu_layers=40, n_cpu_moe=0))
        assert as_run(PROBLEM, one).setup.policy.layers_on_host == (0, 8)
        (all_there,) = read(bench(n_gpu_layers=-1, n_cpu_moe=0))
        assert as_run(PROBLEM, all_there).setup.policy.layers_on_host is None

    def test_weights_are_as_wide_as_the_file(self, read):
        (one,) = read(bench(model_size=18_556_686_336))
        run = as_run(PROBLEM, one)
        model = run.setup.problem.model
        assert model.experts_bytes() + model.resident_bytes() == pytest.approx(18_556_686_336, rel=1e-3)
        assert "4.86 bits" in run.notes[0]

    def test_another_model_is_refused(self, read):
        (one,) = read(bench(model_n_params=116_829_156_672, model_type="gpt-oss 120B"))
        with pytest.raises(InputError, match=r"qwen3-30b-a3b has 30.5 B parameters, the file's gpt-oss 120B 116.8 B"):
            as_run(PROBLEM, one)

    def test_a_long_prompt_goes_through_in_pieces(self, read):
        (one,) = read(bench(n_prompt=2048, n_gen=0))
        run = as_run(PROBLEM, one)
        assert run.setup.problem.workload.prompt_tokens == (512,)
        assert "pieces of 512" in run.notes[0]

    @pytest.mark.parametrize(
        ("gpu", "is_other"),
        [
            ("NVIDIA GeForce RTX 3090", False),
            ("NVIDIA GeForce RTX 4090, NVIDIA A10", True),
            ("", False),
            ("Tesla T4", True),
        ],
    )
    def test_a_file_of_another_device_is_told(self, read, gpu, is_other):
        (one,) = read(bench(gpu_info=gpu))
        assert any("give --hardware" in note for note in as_run(PROBLEM, one).notes) is is_other

    def test_without_a_setting_the_schedule_is_asked_for(self):
        with pytest.raises(InputError, match="--schedules"):
            as_run(PROBLEM, Measurement(Speed.DECODE, 3.0))
        assert as_run(PROBLEM, Measurement(Speed.DECODE, 3.0, 2), "zero").setup.batch.num_requests == 2


class TestServers:
    def test_vllm_says_the_whole_run_and_its_decode(self, read):
        whole, decode = read(json.dumps(SERVED))
        assert (whole.speed, whole.tokens_per_s, whole.requests) == (Speed.WHOLE, 7.2, 8)
        assert (decode.speed, decode.tokens_per_s) == (Speed.DECODE, 20.0)
        assert (decode.prompt_len, decode.gen_len, decode.setting.program) == (128, 9, "vLLM")

    def test_one_request_at_a_time_has_a_prefill(self, read):
        *_, prefill = read(json.dumps({**SERVED, "max_concurrency": 1}))
        assert (prefill.speed, prefill.requests) == (Speed.PREFILL, 1)
        assert prefill.tokens_per_s == pytest.approx(128 / 0.9)

    def test_requests_that_come_over_time_are_as_many_as_were_under_way(self, read):
        said = {**SERVED, "request_rate": 2.0, "max_concurrent_requests": 3, "input_throughput": 102.4}
        assert [one.requests for one in read(json.dumps(said))] == [3, 3]
        assert read(json.dumps(said))[0].setting.program == "SGLang"

    def test_sglang_without_a_server(self, read):
        (one,) = read(json.dumps(OFFLINE) + "\n")
        assert (one.tokens_per_s, one.requests, one.prompt_len, one.gen_len) == (18.0, 4, 128, 9)

    def test_vllm_without_a_server_counts_prompts_too(self, read):
        (one,) = read(json.dumps(TIMED))
        run = as_run(PROBLEM, one, "zero")
        assert run.setup.problem.workload.prompt_tokens == (128,)
        assert run.tokens_per_s == pytest.approx(68.5 * 9 / 137)


@pytest.fixture(scope="module")
def said():
    """What is predicted of a decode whose experts are in 40 layers on the host."""
    measured = Measurement(Speed.DECODE, 1.0, setting=RunSetting("llama.cpp", host_layers=(0, 40)))
    run = as_run(PROBLEM, measured, "n-cpu-moe")
    return predict(run.setup, compiled=True, must_fit=False).decode_tokens_per_s


class TestAnswers:
    def answered(self, tokens_per_s, **setting):
        setting = RunSetting("llama.cpp", schedule="n-cpu-moe", host_layers=(0, 40), **setting)
        measured = Measurement(Speed.DECODE, tokens_per_s, 1, setting=setting)
        return check_measured(PROBLEM, [measured], plans=False).answers[0]

    @pytest.mark.parametrize(("factor", "verdict"), [(0.3, Verdict.BELOW), (1.0, Verdict.WITHIN), (3.0, Verdict.ABOVE)])
    def test_where_a_speed_is(self, said, factor, verdict):
        found = self.answered(factor * said)
        assert (found.verdict, found.predicted) == (verdict, pytest.approx(said))
        assert found.use.part == "host memory"
        assert found.measured_share == pytest.approx(factor * found.use.share)
        assert 0.1 < found.use.share <= 1.0

    def test_a_slow_run_of_a_mapped_file_is_told_of_it(self, said):
        assert "--no-mmap" in self.answered(0.3 * said, is_mapped=True).first
        assert "numactl" in self.answered(0.3 * said, is_mapped=False).first

    def test_a_fast_one_is_told_what_to_measure(self, said):
        found = self.answered(3 * said)
        assert found.band.first_to_measure.name in found.first

    def test_devices_share_the_memory_of_their_host(self):
        """Tensor parallel on two devices the CPU reads in a step what it reads for one."""
        shares = []
        for machine in ("gcp-t4", "gcp-2xt4"):
            problem = Problem.of("olmoe-1b-7b", machine, prompt_len=900, gen_len=9)
            setup = Setup.of(problem, "fastdecode", micro_batch_size=32, num_micro_batches=4)
            found = predict(setup, compiled=True, must_fit=False)
            found = replace(found, decode=replace(found.decode, bottleneck="CPU"))
            shares.append(most_used(found, Speed.DECODE).share * found.token_s)
        assert shares[1] == pytest.approx(shares[0], rel=0.1)

    def test_there_is_something_to_try_for_every_part(self):
        for part in {part for parts in PARTS.values() for part in parts if part}:
            assert all(first_try(part, RunSetting(program)) for program in ("llama.cpp", ""))


class TestCommand:
    def test_by_hand_with_the_plans_best(self, capsys):
        given = "--measured 9 --requests 2 --schedules n-cpu-moe --model olmoe-1b-7b --hardware t4 --prompt-len 60"
        assert main(["check", *given.split(), "--gen-len", "5", "--json", "-"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["answers"]
        assert (found["phase"], found["measured_tokens_per_s"], found["requests"]) == ("decode", 9.0, 2)
        assert found["best_tokens_per_s"] >= 0.99 * found["predicted_tokens_per_s"]
        assert found["verdict"] == "below"

    def test_a_trace_of_the_engine_is_a_measurement(self, capsys):
        inputs = "tests/golden/inputs"
        given = f"check {inputs}/engine.json.gz --model {inputs}/small.json --hardware {inputs}/engine.toml --no-plan"
        assert main(given.split()) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "Prefill: " in shown
        assert "Decode: " in shown
        assert main(["check", f"{inputs}/simulated.json.gz"]) == 2
        assert "not of a whole batch that ran" in capsys.readouterr().err

    def test_a_plan_says_how_a_run_was_set(self, capsys, tmp_path):
        plan = tmp_path / "plan.json"
        asked = "--model olmoe-1b-7b --hardware t4 --prompt-len 60 --gen-len 5 --schedules zero"
        assert main(["plan", *asked.split(), "--batch", "3", "--quick", "--jobs", "1", "--json", str(plan)]) == 0
        capsys.readouterr()
        assert main(["check", str(plan), "--measured", "9", *asked.split()[:-2], "--no-plan", "--json", "-"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["answers"]
        assert found["policy"] == json.loads(plan.read_text())["policy"]
        assert found["requests"] == 3

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ([], "give FILE, or --measured"),
            (["--measured", "0", "--schedules", "zero"], "above 0"),
            (["--measured", "5"], "--schedules"),
            (["--measured", "5", "--schedules", "zero,cgopipe"], "one ran"),
            (["--measured", "5", "--phase", "warm-up"], "warm-up"),
            (["/nonexistent.json"], "nonexistent"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, capsys, given, said):
        assert main(["check", *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
