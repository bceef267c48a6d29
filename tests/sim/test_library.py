"""`from sim import …`: the public calls take names and nouns, and their results become JSON and data frames."""

import json
import subprocess
import sys

import pytest
from plan_examples import SMALL, simple_problem

import sim
from sim import Problem, RequestStream, Service, Setup, Workload, compare, compare_served, explain, plan, predict
from sim.cli import main
from sim.schedule import registered
from traces.errors import InputError

PROBLEM = Problem.of("mixtral-8x7b", "gcp-t4", gen_len=8)
SIZES = {"micro_batch_size": 4, "num_micro_batches": 2}


class TestProblem:
    def test_names_and_nouns_give_the_same(self):
        workload = Workload.load("mtbench").with_(gen_len=8, padded=True)
        assert Problem.of(PROBLEM.model, PROBLEM.hardware, workload) == PROBLEM

    @pytest.mark.parametrize("padded", [True, False])
    def test_a_workload_given_as_a_noun_keeps_its_padding(self, padded):
        workload = Workload.load("mtbench").with_(padded=padded)
        assert Problem.of("mixtral-8x7b", "gcp-t4", workload).workload == workload

    @pytest.mark.parametrize(("padded", "is_padded"), [(None, True), (True, True), (False, False)])
    def test_a_workload_that_is_named_is_padded_as_on_the_command_line(self, padded, is_padded):
        assert Problem.of("mixtral-8x7b", "gcp-t4", "mtbench", padded=padded).workload.padded is is_padded

    def test_a_prompt_length_stands_for_a_workload(self):
        workload = Problem.of("mixtral-8x7b", "gcp-t4", prompt_len=100, gen_len=5).workload
        assert (workload.prompt_tokens, workload.gen_len) == ((100,), 5)

    def test_an_unknown_name_is_one_line(self):
        with pytest.raises(InputError, match="did you mean mixtral-8x7b"):
            Problem.of("mixtral-8x7", "gcp-t4")


class TestResults:
    def test_compare_gives_what_the_command_writes(self, capsys):
        """With the same inputs, and so the same hash; but for the time it took."""
        options = "--gen-len 8 --schedules cgopipe,zero --micro-batch-size 4 --num-micro-batches 2 --jobs 1 --json -"
        assert main(["compare", *options.split()]) == 0
        written = json.loads(capsys.readouterr().out)
        given = json.loads(json.dumps(compare(PROBLEM, ["cgopipe", "zero"], jobs=1, **SIZES).to_dict()))
        for one in (*written["results"], *given["results"]):
            one.pop("wall_s")
        assert {key: written[key] for key in given} == given

    def test_a_comparison_is_a_sequence_with_a_best(self):
        found = compare(PROBLEM, ["zero", "cgopipe"], jobs=1, **SIZES)
        assert [one.schedule for one in found] == ["zero", "cgopipe"]
        assert (len(found), found[1].schedule) == (2, "cgopipe")
        fastest = max(found, key=lambda one: one.prediction.throughput_tokens_per_s)
        assert found.best is fastest

    def test_where_nothing_fits_the_best_says_why(self):
        found = compare(Problem.of("deepseek-v3", "t4"), ["cgopipe"], jobs=1, **SIZES)
        with pytest.raises(InputError, match=r"nothing fits t4: cgopipe: .*short"):
            _ = found.best

    def test_sizes_alone_leave_the_usual_policy_and_more_fields_are_the_policy(self):
        (usual,) = compare(PROBLEM, ["cgopipe"], jobs=1, **SIZES)
        (given,) = compare(PROBLEM, ["cgopipe"], jobs=1, **SIZES, experts_on_device=0.125)
        assert (usual.setup.policy.num_micro_batches, usual.setup.policy.experts_on_device) == (2, 0.0)
        assert given.setup.policy.experts_on_device == 0.125

    def test_every_schedule_unless_some_are_named(self):
        assert [one.schedule for one in compare(PROBLEM, jobs=1, **SIZES)] == list(registered())

    def test_frames_have_a_row_for_each_part_and_columns_by_path(self):
        prediction = predict(Setup.of(PROBLEM, "cgopipe", **SIZES))
        choice = plan(simple_problem(), ["cgopipe"], grid=SMALL, refine=False, jobs=1)
        assert prediction.to_frame()["lanes.GPU.busy_s"].tolist() == [prediction.lanes["GPU"].busy_s]
        comparison = compare(PROBLEM, ["cgopipe", "zero"], jobs=1, **SIZES)
        assert comparison.to_frame()["schedule"].tolist() == ["cgopipe", "zero"]
        speeds = choice.to_frame()["throughput_tokens_per_s"].tolist()
        assert speeds == [one.throughput_tokens_per_s for one in choice.ranked]
        assert explain(choice, replan=False).to_frame().empty

    def test_without_pandas_a_frame_is_refused_in_one_line(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(InputError, match="needs pandas, which is not installed: pip install pandas"):
            predict(Setup.of(PROBLEM, "cgopipe", **SIZES)).to_frame()


def test_importing_the_library_loads_nothing_heavy():
    script = "import sim, sys; print(*[m for m in ('torch', 'numpy', 'pandas', 'simpy', 'numba') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""


def test_the_door_shows_what_it_holds():
    assert {"Problem", "predict", "plan", "compare"} <= set(dir(sim))
    with pytest.raises(AttributeError, match="predikt"):
        _ = sim.predikt


class TestStreams:
    def test_compare_served_gives_what_the_command_writes(self, capsys):
        options = "--requests 12 --gen-len 8 --schedules cgopipe --micro-batch-size 4 --num-micro-batches 2 --jobs 1"
        assert main(["compare", *options.split(), "--prefill-chunk", "512", "--json", "-"]) == 0
        written = json.loads(capsys.readouterr().out)
        stream, service = RequestStream.of(PROBLEM.workload, 12), Service(prefill_chunk=512)
        found = compare_served(PROBLEM, stream, service, ["cgopipe"], jobs=1, **SIZES)
        given = json.loads(json.dumps(found.to_dict()))
        assert {key: written[key] for key in given} == given
        assert [one["prompts"] for one in given["results"]] == ["before", "beside"]
