"""`python -m sim` as its users meet it: results, files, and one clear line for every mistake."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sim_examples import made_setup, round_machine, with_hand_over
from trace_rules import assert_obeys_rules

from sim.cli import main
from sim.comparison import command as compare
from sim.cost import Setup
from sim.hrm import command as roofline
from sim.problem import Hardware, Model, Problem, Workload
from sim.schedule import by_name, registered
from traces.files import read_trace

SIZED = "--micro-batch-size 2 --num-micro-batches 4 --attention-on-device 0.5"
FOUR_OF_TWO = ("compare", "--no-band", *SIZED.split())
QUICK = ["--micro-batch-size", "36", "--num-micro-batches", "2", "--gen-len", "4", "--no-band", "--jobs", "1"]
FEWER = {"compare": ("--schedules", "cpu-experts,n-cpu-moe")}
"""The others take seconds to plan for."""
RESULT_KEYS = {
    "schedule",
    "feasible",
    "reason",
    "policy",
    "throughput_tokens_per_s",
    "prefill_s",
    "decode_s",
    "lanes",
    "bottleneck",
    "memory_peak_bytes",
    "hrm_tokens_per_s",
    "lower_bound_s",
    "simulated_tasks",
    "wall_s",
}


FITTING = [name for name in registered() if name not in ("expert-cache", "zero", "accelerate")]
"""A T4 holds two micro-batches of 36 requests, but not one of 72, whole layers and the KV cache beside it."""


def run(capsys, *args):
    """Exit code, standard output and standard error of one command."""
    code = main(list(args))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def results(capsys, *args):
    code, out, err = run(capsys, "compare", *args, "--json", "-")
    assert code == 0, err
    return json.loads(out)


def refusal(capsys, *args):
    """The one line of a refused command."""
    code, _, err = run(capsys, *args)
    assert code == 2
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_compare_prints_every_schedule_with_its_numbers(capsys):
    code, out, _ = run(capsys, "compare", *QUICK)
    assert code == 0
    for name in FITTING:
        cut_up = "72×1" if by_name(name).system.one_batch else "36×2"
        assert re.search(rf"^{re.escape(name)} +{cut_up}", out, re.MULTILINE), name
    assert "expert-cache: does not fit" in out
    for heading in (
        "tokens/s",
        "first",
        "request",
        "slowest",
        "prefill",
        "decode",
        "bound by",
        "idle",
        "HRM",
        "waited mostly for",
    ):
        assert heading in out
    assert "Simulated." in out
    assert "assumed" in out


def test_json_has_every_field_of_every_result_and_the_inputs_once(capsys):
    shown = results(capsys, *QUICK)
    assert set(shown) == {"schema", "inputs", "input_hash", "results"}
    assert shown["schema"] == 1
    assert [one["schedule"] for one in shown["results"]] == list(registered())
    for one in shown["results"]:
        assert set(one) >= RESULT_KEYS
        assert one["feasible"] is (one["schedule"] in FITTING)
        if not one["feasible"]:
            continue
        assert one["time_to_first_token_s"] == one["prefill_s"]
        assert one["seconds_per_token"] == pytest.approx(one["decode_s"] / 3)
        assert one["decode_tokens_per_s"] == pytest.approx(72 / one["seconds_per_token"])
        assert one["prefill_tokens_per_s"] == pytest.approx(72 * 418 / one["prefill_s"])
        whole = by_name(one["schedule"]).system.one_batch
        assert one["policy"]["micro_batch_size"] == (72 if whole else 36)
        assert one["policy"]["num_micro_batches"] == (1 if whole else 2)
        assert one["policy"]["batch_size"] == 72
        tokens = 72 * 4
        assert one["throughput_tokens_per_s"] == pytest.approx(tokens / (one["prefill_s"] + one["decode_s"]))
        assert one["lanes"][one["bottleneck"]]["busy_s"] == pytest.approx(one["lower_bound_s"])
        assert set(one["memory_peak_bytes"]) == {"device", "host", "pinned"}
        for lane in one["lanes"].values():
            assert 0 <= lane["utilisation"] <= 1 + 1e-9


def test_equal_inputs_give_equal_results_and_hash_whatever_the_number_of_processes(capsys):
    def stable(*more):
        shown = results(capsys, "--schedules", "cgopipe,flexgen", *QUICK[:-2], *more)
        for one in shown["results"]:
            del one["wall_s"]
        return shown

    assert stable("--jobs", "1") == stable("--jobs", "2")


def test_another_input_gives_another_hash(capsys):
    small = ["--schedules", "zero", "--jobs", "1", "--micro-batch-size", "2", "--num-micro-batches", "1"]
    inputs = (("--gen-len", "3"), ("--gen-len", "4"), ("--gen-len", "3", "--routing", "zipf:1.1"))
    hashes = [results(capsys, *small, *one)["input_hash"] for one in inputs]
    assert len(set(hashes)) == len(inputs)


def test_without_a_policy_each_schedule_gets_its_own_and_given_sizes_stay(capsys):
    shown = results(capsys, "--gen-len", "8", "--schedules", "cgopipe,zero", "--jobs", "1")
    policies = {one["schedule"]: one["policy"] for one in shown["results"]}
    assert policies["cgopipe"]["attention"] == "cpu"
    assert policies["zero"]["num_micro_batches"] == 1
    assert policies["cgopipe"]["batch_size"] > policies["zero"]["batch_size"]
    fixed = results(capsys, "--gen-len", "8", "--schedules", "cgopipe", "--micro-batch-size", "20", "--jobs", "1")
    assert fixed["results"][0]["policy"]["micro_batch_size"] == 20


@pytest.mark.parametrize(
    "asked", [("--micro-batch-size", 4, "--num-micro-batches", 2), ("--micro-batch-size", 4), ("--requests", 12)]
)
def test_widths_of_weights_are_those_that_are_given(capsys, asked):
    few = ("--model", "olmoe-1b-7b", "--prompt-len", "30", "--gen-len", "4", "--schedules", "cgopipe", "--jobs", "1")
    shown = results(capsys, *few, *map(str, asked), "--weight-bits", "experts=4.5,attention=8")["results"]
    assert {one["policy"]["weight_bits"] for one in shown} == {"experts=4.5,attention=8"}


def test_widths_beside_a_policy_file_are_refused(capsys, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"batch_size": 8, "micro_batch_size": 8}))
    said = refusal(capsys, "compare", "--policy", str(file), "--weight-bits", "4.5")
    assert "--policy holds the widths of weights already: leave out --weight-bits" in said


def test_a_policy_file_serves_the_schedule_it_names_and_the_others_keep_their_own(capsys, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"schedule": "cgopipe", "batch_size": 30, "micro_batch_size": 8, "pages": 3}))
    shown = results(capsys, "--gen-len", "4", "--schedules", "cgopipe,zero", "--policy", str(file), "--jobs", "1")
    mine, other = (one["policy"] for one in shown["results"])
    assert (mine["batch_size"], mine["micro_batch_size"], mine["num_micro_batches"], mine["pages"]) == (30, 8, 4, 3)
    assert other["batch_size"] != 30


def test_what_fits_is_shown_and_what_does_not_says_what_it_lacks(capsys):
    """400 requests' KV cache fits the host but not a T4."""
    sizes = ["--micro-batch-size", "20", "--num-micro-batches", "20", "--gen-len", "4", "--jobs", "1"]
    shown = results(capsys, "--schedules", "cgopipe,zero", *sizes)
    by_name = {one["schedule"]: one for one in shown["results"]}
    assert by_name["cgopipe"]["feasible"]
    assert not by_name["zero"]["feasible"]
    assert re.search(r"device memory is [\d,]+ bytes short", by_name["zero"]["reason"])
    assert by_name["zero"]["throughput_tokens_per_s"] is None
    assert set(by_name["zero"]) == set(by_name["cgopipe"])


def test_what_is_no_expert_streams_too_where_it_does_not_fit_beside_the_rest(capsys, tmp_path):
    """Mixtral's 2.7 GB of it and two slots of 2.8 GB are too much for 8 GB; its disk is said to be of no use."""
    file = tmp_path / "small.toml"
    device = 'device_memory.capacity = { value = 7.5, unit = "GB", basis = "assumed", source = "a test" }\n'
    disk = ('capacity = { value = 2, unit = "TB"', 'bandwidth = { value = 7, unit = "GB/s"')
    rows = "\n".join(f'{row}, basis = "assumed", source = "a test" }}' for row in disk)
    file.write_text(f'extends = "rtx4090"\n{device}[disk]\n{rows}\n')
    sizes = ["--micro-batch-size", "2", "--num-micro-batches", "2", "--gen-len", "4", "--jobs", "1"]
    asked = ["--model", "mixtral-8x7b", "--hardware", str(file), "--prompt-len", "64", *sizes]
    shown = results(capsys, "--schedules", "cgopipe,fastdecode,flexgen,flexgen-c", *asked)
    assert all(one["feasible"] and one["policy"]["stream_non_experts"] for one in shown["results"])
    assert main(["compare", "--schedules", "flexgen", *asked]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "flexgen: all weights streaming, as what is no expert does not fit the device beside the rest" in told
    assert "The machine's disk is not used: no schedule reads weights from one." in told


UNIFIED = """
extends = "rtx4090"
[device]
peak = { value = 59, unit = "TFLOPS", basis = "datasheet", source = "fp16" }
[device_memory]
capacity = { value = DEVICE, unit = "GB", basis = "datasheet", source = "given to the GPU of 128 GB" }
bandwidth = { value = 256, unit = "GB/s", basis = "datasheet", source = "LPDDR5X-8000, 256 bit" }
[host_memory]
capacity = { value = 48, unit = "GB", basis = "datasheet", source = "the rest" }
bandwidth = { value = 256, unit = "GB/s", basis = "datasheet", source = "the same memory" }
"""


@pytest.fixture
def one_request(tmp_path):
    """Qwen3-30B-A3B, 61 GB in 16 bits, for one request on a host of 48 GB and a device of so many."""

    def options(device_gb):
        (tmp_path / "unified.toml").write_text(UNIFIED.replace("DEVICE", str(device_gb)))
        sizes = ["--prompt-len", "128", "--gen-len", "128", "--micro-batch-size", "1", "--num-micro-batches", "1"]
        return ["--model", "qwen3-30b-a3b", "--hardware", str(tmp_path / "unified.toml"), *sizes, "--jobs", "1"]

    return options


def test_sizes_alone_get_the_most_experts_on_the_device_where_the_host_cannot_hold_them(capsys, one_request):
    """As good as what `plan` finds; a tuned run of another engine measured 24.15 (ROCm/vllm, pull request 968)."""
    shown = results(capsys, *one_request(80))["results"]
    as_one = [one for one in shown if not by_name(one["schedule"]).system.splits_experts]
    assert all(one["feasible"] and one["policy"]["experts_on_device"] == 1 for one in as_one)
    assert all(one["feasible"] for one in shown)
    best = max(as_one, key=lambda one: one["throughput_tokens_per_s"])
    assert 127 / best["decode_s"] == pytest.approx(27.6, abs=0.1)


def test_as_many_experts_as_fit_and_no_more(capsys, one_request):
    (one,) = results(capsys, *one_request(24), "--schedules", "flexgen")["results"]
    share = one["policy"]["experts_on_device"]
    problem = Problem(Model.load("qwen3-30b-a3b"), Hardware.load(one_request(24)[3]), Workload.fixed(128, 128))
    fits = [
        not Setup.of(problem, "flexgen", micro_batch_size=1, num_micro_batches=1, experts_on_device=of).shortages
        for of in (0.0, share, share + 1 / 128)
    ]
    assert fits == [False, True, False]
    assert round(share * 128) == share * 128


def test_what_was_placed_is_said(capsys, one_request):
    _, out, _ = run(capsys, "compare", *one_request(80), "--schedules", "flexgen,zero")
    assert "flexgen, zero: 128 of 128 experts on the device, as many as fit" in " ".join(out.split())


def test_what_changes_the_outputs_is_said(capsys, tmp_path):
    policy = tmp_path / "policy.json"
    sizes = {"schedule": "cpu-experts", "batch_size": 1, "micro_batch_size": 1}
    given = ["--model", "qwen3-30b-a3b", "--hardware", "rtx4090", "--schedules", "cpu-experts", "--jobs", "1"]
    for count, said in ((0, False), (1, True)):
        policy.write_text(json.dumps({**sizes, "defer_experts": count}))
        assert main(["compare", *given, "--policy", str(policy), "--gen-len", "3"]) == 0
        assert ("changes the model's outputs" in " ".join(capsys.readouterr().out.split())) is said


def test_a_policy_that_says_where_experts_are_is_left_as_it_is(capsys, one_request, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"batch_size": 1, "micro_batch_size": 1, "experts_on_device": 0.0}))
    given = one_request(80)
    given = [*given[:8], "--policy", str(policy), "--jobs", "1", "--schedules", "flexgen"]
    assert "host memory is" in refusal(capsys, "compare", *given)


def test_baseline_adds_a_column_of_speed_ups(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "compare", "--schedules", "cgopipe,flexgen", "--baseline", "flexgen", *QUICK)
    assert re.search(r"slowest +flexgen", out)
    assert re.search(r"flexgen .* 1\.00×", out)


def test_exact_simulates_every_step_and_agrees_with_interpolation(capsys):
    small = ["--schedules", "cgopipe", "--gen-len", "40", *QUICK[:4], "--jobs", "1"]
    sampled, exact = results(capsys, *small)["results"][0], results(capsys, *small, "--exact")["results"][0]
    assert exact["simulated_steps"] == list(range(40))
    assert len(sampled["simulated_steps"]) < 12
    assert sampled["decode_s"] == pytest.approx(exact["decode_s"], rel=1e-3)


def test_plot_writes_a_picture(capsys, tmp_path):
    file = tmp_path / "compare.png"
    code, _, _ = run(capsys, "compare", "--schedules", "cgopipe,zero", "--plot", str(file), *QUICK)
    assert code == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 20_000


def test_the_picture_shows_the_hand_over():
    from sim.simulation import layer_view

    for microseconds in (0, 50_000):
        view = layer_view(made_setup(machine=with_hand_over(round_machine(), microseconds)))
        by_id = {one.task.id: one for one in view.tasks}
        pairs = [(by_id[one.cause], one) for one in view.tasks if one.waited_for and one.cause in by_id]
        assert {after.start_ns - before.end_ns for before, after in pairs} == {1000 * microseconds}


def test_traces_of_all_schedules_obey_the_rules_and_read_back(capsys, tmp_path):
    code, _, _ = run(capsys, "compare", "--trace", str(tmp_path), *QUICK)
    assert code == 0
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.json.gz" for name in FITTING}
    for name in FITTING:
        file = tmp_path / f"{name}.json.gz"
        assert_obeys_rules(file)
        trace = read_trace(file)
        assert trace.origin == "simulated"
        assert trace.metadata["schedule"] == name
        assert {span.step for span in trace.spans} >= {0, 1, 2}


def test_traces_are_the_same_bytes_every_time(capsys, tmp_path):
    for folder in ("a", "b"):
        run(capsys, "compare", "--schedules", "cgopipe", "--trace", str(tmp_path / folder), *QUICK)
    assert (tmp_path / "a" / "cgopipe.json.gz").read_bytes() == (tmp_path / "b" / "cgopipe.json.gz").read_bytes()


def test_list_shows_every_preset_and_schedule_in_a_line(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    for name in [*registered(), *Model.presets(), *Hardware.presets(), *Workload.presets()]:
        assert re.search(rf"^{re.escape(name)} +\S", out, re.MULTILINE), name


def test_list_of_a_machine_shows_the_basis_of_every_number(capsys):
    code, out, _ = run(capsys, "list", "gcp-t4")
    assert code == 0
    for path, quantity in Hardware.load("gcp-t4").quantities():
        assert re.search(rf"{re.escape(path)} .*{quantity.basis}", out), path


@pytest.mark.parametrize("command", ["compare", "roofline", "list"])
def test_help_ends_with_two_examples(command):
    shown = subprocess.run(
        [sys.executable, "-m", "sim", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
    ).stdout
    assert len(re.findall(rf"^  python -m sim {command}.*$", shown.partition("examples:")[2], re.MULTILINE)) == 2


@pytest.mark.parametrize("command", [compare.COMMAND, compare.LISTING, roofline.COMMAND], ids=lambda one: one.name)
def test_the_examples_of_help_work(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in command.examples:
        assert main([command.name, *example.split(), *FEWER.get(command.name, ())]) == 0, example
    capsys.readouterr()
    named = re.findall(r"\w+\.png", " ".join(command.examples))
    assert [file.name for file in tmp_path.iterdir()] == named


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("compare", "--model", "mixtral8x7b"), "did you mean mixtral-8x7b"),
        (("compare", "--hardware", "gcp-t5"), "did you mean gcp-t4"),
        (("compare", "--workload", "mtbensh"), "did you mean mtbench"),
        (("compare", "--schedules", "cgopip"), "did you mean cgopipe"),
        (("compare", "--schedules", ","), "--schedules"),
        (("compare", "--micro-batch-size", "0"), "--micro-batch-size: 0"),
        (("compare", "--micro-batch-size", "many"), "--micro-batch-size"),
        (("compare", "--num-micro-batches", "-1"), "--num-micro-batches: -1"),
        (("compare", "--gen-len", "0"), "--gen-len: 0"),
        (("compare", "--prompt-len", "0"), "--prompt-len: 0"),
        (("compare", "--jobs", "0"), "--jobs: 0"),
        (("compare", "--baseline", "vllm"), "--baseline: 'vllm'"),
        (("compare", "--plot", "picture.txt"), ".png"),
        (("compare", "--attention-on-device", "0.5"), "give --micro-batch-size and --num-micro-batches too"),
        ((*FOUR_OF_TWO, "--schedules", "zero"), "attention_on_device: 0.5 is not what zero does"),
        ((*FOUR_OF_TWO[:-1], "2", "--schedules", "cgopipe"), "attention_on_device: 2.0 is not allowed"),
        (("compare", "--policy", "/nonexistent/policy.json"), "cannot be read"),
        (("compare", "--model", "/nonexistent/config.json"), "/nonexistent/config.json"),
        (("compare", "--hardware", "/nonexistent/machine.toml"), "/nonexistent/machine.toml"),
        (("compare", "--workload", "/nonexistent/requests.jsonl"), "/nonexistent/requests.jsonl"),
        (("roofline", "--context", "0"), "--context: 0"),
        (("compare", "--frobnicate"), "--frobnicate"),
        ((), "COMMAND"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, args, says):
    assert says in refusal(capsys, *args)


def test_a_config_without_experts_is_refused(capsys, tmp_path):
    file = tmp_path / "config.json"
    dense = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    file.write_text(json.dumps({**dense, "intermediate_size": 128}))
    assert "has no experts" in refusal(capsys, "compare", "--model", str(file))


def test_a_negative_bandwidth_names_its_field(capsys, tmp_path):
    file = tmp_path / "machine.toml"
    file.write_text(
        'extends = "gcp-t4"\n[link]\nh2d = { value = -5, unit = "GB/s", basis = "measured", source = "me" }\n'
    )
    line = refusal(capsys, "compare", "--hardware", str(file))
    assert "link.h2d: -5 GB/s" in line
    assert "above 0" in line


def test_a_policy_that_does_not_fit_names_the_memory_and_the_bytes(capsys):
    sizes = ["--micro-batch-size", "512", "--num-micro-batches", "1", "--gen-len", "4"]
    line = refusal(capsys, "compare", "--schedules", "cgopipe", *sizes, "--jobs", "1")
    short = int(re.search(r"device memory is ([\d,]+) bytes short", line)[1].replace(",", ""))
    needs, has = (float(number) for number in re.search(r"needs ([\d.]+) GB of ([\d.]+) GB", line).groups())
    assert short == pytest.approx((needs - has) * 1e9, abs=2e7)


def test_a_model_too_large_for_any_policy_says_what_is_missing(capsys):
    line = refusal(capsys, "compare", "--model", "deepseek-v3", "--hardware", "rtx3090", "--schedules", "cgopipe")
    assert "no policy on the grid fits" in line
    assert "host memory is" in line


def test_an_unknown_field_of_a_policy_file_is_named(capsys, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"batch_size": 8, "micro_batch_size": 2, "micro_batches": 4}))
    assert "micro_batches: unknown field" in refusal(capsys, "compare", "--policy", str(file))


def test_a_file_that_cannot_be_written_is_one_line(capsys, tmp_path):
    line = refusal(capsys, "compare", "--schedules", "zero", *QUICK, "--json", str(tmp_path / "no" / "x.json"))
    assert "cannot be written" in line


def test_interruption_is_quiet(monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.comparison.compare", interrupted)
    code, _, err = run(capsys, "compare", *QUICK)
    assert code == 130
    assert err == "interrupted\n"


def test_prices_give_money_for_each_schedule(capsys, tmp_path):
    file = tmp_path / "results.json"
    given = (*QUICK, "--schedules", "flexgen", "--price-per-hour", "0.36")
    _, out, _ = run(capsys, "compare", *given, "--json", str(file))
    table = json.loads(file.read_text())
    (one,) = table["results"]
    assert one["money_per_million_tokens"] == pytest.approx(100 / one["throughput_tokens_per_s"])
    assert table["prices"] == {"per_hour": 0.36, "per_kwh": None}
    assert "what generated tokens cost" in out
    assert "prices" not in results(capsys, *QUICK, "--schedules", "flexgen")


def test_prices_of_requests_that_come(capsys):
    table = results(capsys, *QUICK, "--schedules", "flexgen", "--requests", "80", "--price-per-kwh", "0.36")
    (one,) = table["results"]
    assert one["money_per_million_tokens"] == pytest.approx(0.1 * one["energy_j_per_token"])
    assert one["money_per_request"] == pytest.approx(4e-6 * one["money_per_million_tokens"])
