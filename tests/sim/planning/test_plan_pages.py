"""Plans and comparisons as pages: the numbers are the command's own, and what if is answered for every combination."""

import json
import re

import pytest
from sim_examples import few_layers, round_machine

from sim.cli import main
from sim.planning import explain, plan, plan_page
from sim.planning.export import what_ifs
from sim.planning.policies import PolicyGrid
from sim.problem import Problem, Workload
from sim.simulation import predict

SIZES = {"micro_batch_sizes": (1, 8, 40), "num_micro_batches": (1, 4), "expert_values": 3}


def content_of(page):
    return json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def choice():
    machine = round_machine(device_memory__capacity=8e9, host_memory__capacity=16e9)
    problem = Problem(few_layers("mixtral-8x7b", 4), machine, Workload.fixed(60, 8))
    return plan(problem, ["cgopipe", "zero"], jobs=1, grid=PolicyGrid(**SIZES))


@pytest.fixture(scope="module")
def few_values():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(what_ifs, "NARROWER", (8.0,))
        patch.setattr(what_ifs, "MOST_SIZES", 2)
        yield


@pytest.fixture(scope="module")
def grid(choice, few_values):
    told = []
    return what_ifs.slider_grid(choice, 1, lambda *done: told.append(done)), told


class TestWhatIf:
    def at(self, found, *places):
        """The answer at these places of the sliders."""
        index = 0
        for axis, place in zip(found.axes, places, strict=True):
            index = index * len(axis.values) + place
        return found.points[index]

    def test_each_combination_has_an_answer_and_the_plans_own_is_the_plan(self, choice, grid):
        found, told = grid
        assert [len(one.values) for one in found.axes] == [3, 3, 3, 3, 2]
        assert len(found.points) == 3**4 * 2
        assert told[-1][0] == told[-1][1] == len(told)
        speed, decode, first, requests, *_, schedule = self.at(found, *(one.at for one in found.axes))
        best = choice.best
        assert (speed, decode, first) == (
            best.throughput_tokens_per_s,
            best.decode_tokens_per_s,
            best.time_to_first_token_s,
        )
        assert (requests, schedule) == (best.num_requests, best.schedule)
        assert [one.values[one.at] for one in found.axes[:3]] == [10.0, 100.0, 16.0]

    def test_more_of_anything_is_never_worse(self, grid):
        """Of narrower experts, where every answer is what was found for it, none the plan."""
        found, _ = grid
        here = [*(one.at for one in found.axes[:-1]), 0]
        for axis in range(4):
            line = [[*here[:axis], place, *here[axis + 1 :]] for place in range(3)]
            speeds = [point[0] for point in (self.at(found, *one) for one in line) if point]
            assert speeds == sorted(speeds) or speeds == pytest.approx(sorted(speeds), rel=what_ifs.GAIN)

    def test_no_answer_needs_more_than_there_is(self, grid):
        found, _ = grid
        memories, batches = found.axes[2].values, found.axes[3].values
        for at, point in enumerate(found.points):
            if point is not None:
                memory, batch = memories[at // 6 % 3], batches[at // 2 % 3]
                assert point[3] <= batch
                assert point[5] <= memory

    def test_where_nothing_fits_there_is_none(self, choice, few_values, monkeypatch):
        monkeypatch.setattr(what_ifs, "FACTORS_OF_A_MACHINE", (0.01, 1.0))
        found = what_ifs.slider_grid(choice, 1, lambda *_: None)
        assert self.at(found, 1, 1, 0, 0, 1) is None
        assert self.at(found, 1, 1, 1, 1, 1) is not None


class TestThePage:
    def test_has_the_plan_its_rivals_its_memory_and_its_reasons(self, choice, few_values, monkeypatch):
        monkeypatch.setattr(what_ifs, "FACTORS_OF_A_MACHINE", (1.0,))
        monkeypatch.setattr(what_ifs, "FACTORS_OF_A_BATCH", (1.0,))
        why = explain(choice, predict(choice.best.setup), jobs=1, replan=False)
        sections = {one["title"]: one for one in content_of(plan_page(choice, why, jobs=1))["sections"]}
        assert [row[0] for row in sections["Each schedule's best"]["rows"]] == list(choice.plans)
        speed = pytest.approx(choice.best.throughput_tokens_per_s, rel=1e-5)
        assert sections["Each schedule's best"]["rows"][0][2] == speed
        bars = {one["name"]: one for one in sections["Memory"]["bars"]}
        assert sum(bars["device"]["parts"].values()) == pytest.approx(choice.best.device_bytes, rel=1e-5)
        first, second = sections["One layer of a decode step"]["timelines"]
        assert (first["name"], second["name"]) == tuple(choice.plans)
        for one in (first, second):
            ends = [begin + long for bars in one["lanes"].values() for _, begin, long in bars]
            assert max(ends) == pytest.approx(one["length_ms"], rel=1e-3)
        assert sections["What if"]["points"][-1][0] == speed


class TestTheCommands:
    PROBLEM = ("--model", "olmoe-1b-7b", "--hardware", "t4", "--prompt-len", "60", "--gen-len", "5", "--jobs", "1")
    SIZES = ("--micro-batch-size", "4", "--num-micro-batches", "2")

    def test_compare_writes_every_schedule_that_fits_and_why_others_do_not(self, tmp_path, capsys):
        file = tmp_path / "compare.html"
        names = "cgopipe,zero"
        assert main(["compare", *self.PROBLEM, *self.SIZES, "--schedules", names, "--html", str(file)]) == 0
        sections = {one["title"]: one for one in content_of(file.read_text(encoding="utf-8"))["sections"]}
        assert [row[0] for row in sections["Schedules"]["rows"]] == ["cgopipe", "zero"]
        lengths = {one["name"]: one["length_ms"] for one in sections["One layer of a decode step"]["timelines"]}
        assert set(lengths) == {"cgopipe", "zero"}
        text = capsys.readouterr().out
        assert all(f"{row[2]:,.2f}" in text for row in sections["Schedules"]["rows"])

    def test_a_page_that_cannot_be_written_is_an_error_in_a_line(self, tmp_path, capsys):
        file = tmp_path / "no" / "folder.html"
        assert main(["compare", *self.PROBLEM, *self.SIZES, "--schedules", "zero", "--html", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("command", ["plan", "compare"])
    def test_of_requests_there_is_none(self, command, capsys):
        assert main([command, *self.PROBLEM, "--requests", "5", "--html", "page.html"]) == 2
        assert "--html" in capsys.readouterr().err
