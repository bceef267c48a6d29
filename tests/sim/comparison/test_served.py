"""`compare --requests`: prompts before decode and beside it, their numbers, files of requests, and every mistake."""

import json
import re

import pytest
from cases import INPUTS
from sim_examples import few_layers, round_machine

from sim.admission import Lengths, Priority, Prompts, RequestStream, Service, StreamOptions
from sim.cli import main
from sim.comparison import Asked, compare, compare_served, served_by
from sim.comparison.streams.chunks import CHUNKS, balanced_chunk
from sim.planning import Flow, best_stream_policy
from sim.problem import Policy, Problem, Workload
from sim.schedule import by_name
from sim.simulation import REQUESTS, StreamSetup, serve_stream
from traces.errors import InputError
from traces.files import read_trace

SMALL = ("--model", str(INPUTS / "small.json"), "--prompt-len", "60", "--gen-len", "8", "--jobs", "1")
SIZES = ("--micro-batch-size", "4", "--num-micro-batches", "2")
EIGHT = Asked({}, 4, 2)


def problem_of(workload=None, **machine):
    return Problem(few_layers("mixtral-8x7b", 2), round_machine(**machine), workload or Workload.fixed(60, 8))


def served(num_requests=24, schedules=("cgopipe", "zero"), workload=None, service=None, asked=EIGHT, **drawn):
    problem = problem_of(workload)
    stream = RequestStream.of(problem.workload, num_requests, **drawn)
    return compare_served(problem, stream, service or Service(prefill_chunk=64), schedules, asked, jobs=1)


def command(capsys, *args):
    """Exit code, standard output and standard error of `compare` on the small problem."""
    code = main(["compare", *SMALL, *SIZES, *args])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def results(capsys, *args):
    code, out, err = command(capsys, *args, "--json", "-")
    assert code == 0, err
    return json.loads(out)["results"]


def refusal(capsys, *args):
    code, _, err = command(capsys, *args)
    assert code == 2, err
    assert err.count("\n") == 1, err
    return err


class TestComparison:
    def test_a_schedule_that_mixes_has_both_places_of_prompts_and_another_one(self):
        found = served(schedules=("cgopipe", "zero", "hybrid"))
        assert [(one.schedule, one.prompts) for one in found] == [
            ("cgopipe", Prompts.BEFORE),
            ("cgopipe", Prompts.BESIDE),
            ("zero", Prompts.BEFORE),
            ("hybrid", Prompts.BEFORE),
            ("hybrid", Prompts.BESIDE),
        ]
        assert ["cannot carry prompts" in one.note for one in found] == [False, False, True, False, False]

    def test_one_batch_is_what_compare_says(self):
        found = served(num_requests=8)
        (alone,) = compare(problem_of(), ["cgopipe"], EIGHT, jobs=1)
        assert found[0].result.total_s == pytest.approx(alone.prediction.total_s, abs=1e-9)
        assert found[0].setup.policy == alone.prediction.policy

    def test_beside_decode_is_what_the_stream_says(self):
        problem, service = problem_of(), Service(64, 2, Priority.LONGEST, preempts=True)
        found = served(service=service)[1]
        stream = RequestStream.of(problem.workload, 24)
        setup = StreamSetup(problem, found.setup.schedule, found.setup.policy, 64, 2)
        assert found.result == serve_stream(setup, stream, Priority.LONGEST, preempts=True)

    def test_the_best_is_the_fastest(self):
        found = served()
        rates = [one.result.throughput_tokens_per_s for one in found]
        assert found.best is found[rates.index(max(rates))]

    def test_goodput_counts_who_met_the_limits_and_is_not_there_without(self):
        assert [one.goodput_requests_per_s for one in served()] == [None] * 3
        free = served(service=Service(64, ttft_limit_s=1e6))
        for one in free:
            assert one.goodput_requests_per_s == pytest.approx(24 / one.result.total_s)
        first = free[0].result
        between = (first.requests[0].first_token_s + first.requests[8].first_token_s) / 2
        limited = served(service=Service(64, ttft_limit_s=between))[0]
        assert limited.goodput_requests_per_s == pytest.approx(8 / first.total_s), "the first of three batches met it"
        slow = served(service=Service(64, tpot_limit_s=0.5 * first.token_s.p50))[0]
        assert slow.goodput_requests_per_s == 0

    def test_without_a_policy_each_schedule_gets_its_own(self):
        found = served(num_requests=5000, asked=Asked(), schedules=["zero"])[0]
        (alone,) = compare(problem_of(), ["zero"], jobs=1)
        assert found.setup.policy == alone.prediction.policy

    def test_without_a_policy_prompts_beside_decode_have_one_of_their_own(self, monkeypatch):
        monkeypatch.setattr("sim.planning.streams.search.AXES", {"num_micro_batches": (1, 2, 4)})
        stream, service = RequestStream.of(problem_of().workload, 60), Service(num_prompts=2)
        (beside,) = served_by(problem_of(), stream, service, Asked(), "cgopipe", (Prompts.BESIDE,))
        best = best_stream_policy(problem_of(), by_name("cgopipe"), Flow.of(stream), num_prompts=2).ranked[0]
        assert beside.setup == best.setup
        assert beside.result == serve_stream(best.setup, stream)
        assert (beside.service.num_prompts, beside.service.prefill_chunk) == (2, best.setup.prefill_chunk)
        assert "a policy of its own for prompts beside decode" in beside.note

    def test_fewer_requests_than_the_best_batch_holds_are_planned_for(self):
        found = served(num_requests=3, asked=Asked(), schedules=["zero"])[0]
        assert found.setup.policy.batch_size == 3
        assert "planned for 3 requests, fewer than the" in found.note

    def test_what_does_not_fit_says_so_in_both_places(self):
        problem = problem_of(host_memory__capacity=1e9, device_memory__capacity=1e9)
        stream = RequestStream.of(problem.workload, 9)
        found = compare_served(problem, stream, Service(64), ["cgopipe"], EIGHT, jobs=1)
        assert [one.result for one in found] == [None, None]
        assert all("memory is" in one.reason for one in found)
        with pytest.raises(InputError, match=r"round serves none of the requests: cgopipe: .* memory is "):
            found.best  # noqa: B018

    def test_what_cannot_be_beside_decode_stays_before_it(self):
        """A KV cache on the device is not in blocks."""
        asked = Asked.of({"micro_batch_size": 4, "num_micro_batches": 2, "attention": "gpu", "kv_on_device": 1.0})
        before, beside = served(schedules=["cgopipe"], asked=asked)
        assert before.result is not None
        assert beside.reason.startswith("kv_on_device: 1 in a stream")

    def test_equal_inputs_have_equal_hashes_and_others_do_not(self):
        lengths = Lengths.parse("lognormal:4,0.5")
        ways = [{}, {"num_requests": 9}, {"lengths": lengths}, {"lengths": lengths, "seed": 1}]
        ways += [{"service": Service(32)}, {"service": Service(64, ttft_limit_s=1.0)}, {"schedules": ["zero"]}]
        hashes = [served(**way).to_dict()["input_hash"] for way in ways]
        assert len(set(hashes)) == len(hashes)
        assert served().to_dict()["input_hash"] == hashes[0]


class TestChunks:
    def test_the_best_power_of_two_is_taken_and_named(self):
        workload = Workload.fixed(600, 8)
        found = served(num_requests=40, schedules=["cgopipe"], workload=workload, service=Service())[1]
        chunk = found.service.prefill_chunk
        rates = {
            size: served(num_requests=40, schedules=["cgopipe"], workload=workload, service=Service(size))[1]
            .result.throughput_tokens_per_s
            for size in CHUNKS[:4]
        }  # fmt: skip
        assert chunk in CHUNKS
        assert found.result.throughput_tokens_per_s >= max(rates.values()) * (1 - 1e-12)
        assert f"prompts in chunks of {chunk:,} tokens, the best of " in found.note

    def test_a_chunk_that_is_given_is_kept_and_not_searched_for(self):
        found = served(service=Service(100))[1]
        assert (found.service.prefill_chunk, found.note) == (100, "")

    def test_the_search_begins_where_as_many_prompts_end_as_requests(self):
        """Eight places, each of which needs 60 tokens every 8 steps: 60 a step, or 30 in each of two micro-batches."""
        stream = RequestStream.of(Workload.fixed(60, 8), 100)
        assert balanced_chunk(Policy(8, 4), stream) == 60
        assert balanced_chunk(Policy(8, 4), stream, 2) == 30

    def test_chunks_that_do_not_fit_the_device_are_passed_over(self):
        """Room for the activations of a thousand tokens or so, where prompts ask for 4,096."""
        workload = Workload.fixed(4096, 8)
        fits = served(num_requests=9, schedules=["cgopipe"], workload=workload, service=Service(1024))[1]
        device = fits.setup.memory.peak_bytes()["device"]
        problem = problem_of(workload, device_memory__capacity=device * 1.02)
        stream = RequestStream.of(workload, 9)
        setup = Asked.of({"micro_batch_size": 1, "num_micro_batches": 2})
        found = compare_served(problem, stream, Service(), ["cgopipe"], setup, jobs=1)[1]
        assert found.result is not None


class TestOptions:
    def test_a_table_of_both_with_a_note_on_what_cannot(self, capsys):
        code, out, _ = command(capsys, "--requests", "20", "--schedules", "cgopipe,flexgen", "--prefill-chunk", "64")
        assert code == 0
        for row in ("cgopipe +before", "cgopipe +beside", "flexgen +before"):
            assert re.search(rf"^{row} +4×2", out, re.MULTILINE), row
        flat = " ".join(out.split())
        assert "20 requests come at once." in flat
        assert "flexgen: its steps cannot carry prompts beside decode, so batch after batch alone: it takes a" in flat
        assert re.search(r"(cgopipe|flexgen), (batch after batch|prompts beside decode), is fastest with", flat)

    def test_a_baseline_is_compared_with_batch_after_batch(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        given = ("--requests", "20", "--schedules", "cgopipe", "--prefill-chunk", "64", "--baseline", "cgopipe")
        _, out, _ = command(capsys, *given)
        assert re.search(r"cgopipe +before .* 1\.00×", out)

    def test_all_options_at_once(self, capsys):
        given = "--requests 30 --schedules cgopipe --arrivals poisson:50/s --gen-lens lognormal:5,0.7 --seed 3"
        more = "--priority longest --preempt --ttft 2 --tpot 0.5 --prefill-chunk 64 --prompt-batches 2"
        before, beside = results(capsys, *given.split(), *more.split())
        assert (beside["prefill_chunk"], beside["prompt_batches"]) == (64, 2)
        assert (before["prefill_chunk"], before["prompt_batches"]) == (None, None)
        for one in (before, beside):
            assert one["num_requests"] == 30
            assert one["throughput_tokens_per_s"] * one["total_s"] == pytest.approx(one["generated_tokens"])
            assert one["ttft_s"]["p50"] <= one["ttft_s"]["p99"] <= one["e2e_s"]["p99"]
            assert 0 <= one["goodput_requests_per_s"] <= 30 / one["total_s"]
            assert 0 < one["occupancy"] <= 1
            assert one["lanes"][one["bottleneck"]]["utilisation"] > 0
        assert before["generated_tokens"] == beside["generated_tokens"] < 30 * 8

    def test_requests_of_a_table_and_of_lines_are_the_same(self, capsys, tmp_path):
        table, lines = tmp_path / "trace.csv", tmp_path / "trace.jsonl"
        rows = [(0.0, 60, 8), (0.5, 40, 3), (0.25, 70, 8)]
        table.write_text("arrival_s,prompt_tokens,generated_tokens\n" + "".join(f"{a},{p},{g}\n" for a, p, g in rows))
        lines.write_text(
            "".join(json.dumps({"arrival_s": a, "prompt_tokens": p, "generated_tokens": g}) + "\n" for a, p, g in rows)
        )
        small = [*SMALL[:2], "--gen-len", "8", *SIZES, "--schedules", "cgopipe", "--prefill-chunk", "64", "--jobs", "1"]
        shown = []
        for file in (table, lines):
            assert main(["compare", *small, "--requests", str(file), "--unpadded", "--json", "-"]) == 0
            shown.append(json.loads(capsys.readouterr().out)["results"])
        assert shown[0] == shown[1]
        assert [one["generated_tokens"] for one in shown[0]] == [19, 19]

    def test_prompts_of_a_file_are_padded_as_those_of_a_workload(self, tmp_path):
        file = tmp_path / "two.jsonl"
        file.write_text('{"prompt_tokens": 60}\n{"prompt_tokens": 10}\n')
        for padded, lengths in ((True, [60, 60]), (False, [60, 10])):
            asked = problem_of(Workload("any", (7,), 8, padded))
            problem, stream = StreamOptions(str(file)).stream_of(asked)
            assert [one.prompt_tokens for one in stream.requests] == lengths
            assert (problem.workload.padded, problem.workload.prompt_tokens) == (padded, tuple(lengths))

    def test_plot_writes_a_picture(self, capsys, tmp_path):
        file = tmp_path / "served.png"
        code, _, _ = command(
            capsys, "--requests", "20", "--schedules", "cgopipe", "--prefill-chunk", "64", "--plot", str(file)
        )
        assert code == 0
        assert file.read_bytes().startswith(b"\x89PNG")

    def test_traces_hold_the_first_steps_of_a_stream_and_a_batch_as_without_requests(self, capsys, tmp_path):
        given = ("--requests", "40", "--schedules", "cgopipe", "--prefill-chunk", "64", "--trace", str(tmp_path))
        code, _, err = command(capsys, *given)
        assert code == 0
        beside = read_trace(tmp_path / "cgopipe-beside.json.gz")
        record = beside.metadata["stream"]
        assert (len(record["steps"]), len(record["requests"])) == (24, 40)
        assert {span.step for span in beside.spans} >= set(range(1, 25))
        assert re.search(r"^cgopipe: the trace has 24 of \d+ steps$", err, re.M)
        counted = [one.values for one in beside.counters if one.name == REQUESTS]
        assert [one["waiting"] for one in counted] == sorted((one["waiting"] for one in counted), reverse=True)
        assert len(counted) == 24
        assert all(one["decoding"] <= one["places"] == 8 for one in counted)
        assert {span.step for span in read_trace(tmp_path / "cgopipe-before.json.gz").spans} >= {0, 1, 2}

    def test_exact_simulates_every_step_of_a_batch(self, capsys):
        given = ("--requests", "8", "--schedules", "zero", "--gen-len", "60")
        sampled, exact = (results(capsys, *given, *more)[0] for more in ((), ("--exact",)))
        assert sampled["num_simulated"] < exact["num_simulated"]
        assert sampled["total_s"] == pytest.approx(exact["total_s"], rel=1e-3)

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (("--requests", "0"), "requests: 0 is not allowed"),
            (("--requests", "-4"), "requests: -4 is not allowed"),
            (("--requests", "many"), "requests: 'many' is neither a whole number nor a file"),
            (("--requests", "9", "--arrivals", "poisson:0/s"), "not a rate"),
            (("--requests", "9", "--arrivals", "soon"), "arrivals 'soon': unknown"),
            (("--requests", "9", "--gen-lens", "lognorm:3,1"), "did you mean lognormal"),
            (("--requests", "9", "--gen-lens", "lognormal:80,1"), "80 tokens are more than the 8"),
            (("--requests", "9", "--priority", "shortest"), "priority: 'shortest' is not allowed"),
            (("--requests", "9", "--ttft", "-1"), "ttft_limit_s: -1.0 is not allowed"),
            (("--requests", "9", "--seed", "-1"), "seed: -1 is not allowed"),
            (("--requests", "9", "--prefill-chunk", "0"), "--prefill-chunk: 0"),
            (("--requests", "9", "--schedules", "zero", "--preempt"), "--preempt: none of zero carries prompts"),
            (("--requests", "9", "--schedules", "zero", "--prefill-chunk", "64"), "compare cgopipe or hybrid"),
            (("--requests", "9", "--baseline", "vllm"), "--baseline: 'vllm'"),
            (("--ttft", "1"), "--ttft: says something of a stream of requests: give --requests N too"),
            (("--arrivals", "at-once"), "--arrivals: says something"),
            (("--preempt",), "--preempt: says something"),
        ],
    )
    def test_a_mistake_is_one_line_and_exit_code_2(self, args, says, capsys):
        assert says in refusal(capsys, *args)

    def test_a_file_has_its_own_prompts_and_times(self, capsys, tmp_path):
        file = tmp_path / "two.csv"
        file.write_text("prompt_tokens\n60\n")
        assert "--prompt-len" in refusal(capsys, "--requests", str(file))
        without = [*SMALL[:2], *SIZES, "--jobs", "1", "--requests", str(file)]
        assert main(["compare", *without, "--arrivals", "poisson:1/s"]) == 2
        assert "--arrivals: " in capsys.readouterr().err
        assert main(["compare", *SMALL[:2], *SIZES, "--jobs", "1", "--requests", "/nonexistent/trace.csv"]) == 2
        assert "trace.csv: cannot be read" in capsys.readouterr().err

    def test_a_request_too_long_for_the_kv_cache_says_so(self, capsys, tmp_path):
        file = tmp_path / "long.csv"
        file.write_text("prompt_tokens\n100\n90000000\n")
        args = [*SMALL[:2], *SIZES, "--unpadded", "--jobs", "1", "--schedules", "cgopipe", "--prefill-chunk", "64"]
        assert main(["compare", *args, "--requests", str(file)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "memory is" in error or "blocks of KV cache" in error
