"""Published rows: what a file of them may hold, what each is taken to be, and how near the predictions come."""

import json
from dataclasses import replace
from statistics import fmean

import pytest
from row_files import write_rows

from sim.problem import Hardware
from traces.errors import InputError
from validation.cli import main
from validation.published.kernels import predict_kernels
from validation.published.predict import Predicted, predict_all, predict_row
from validation.published.report import by_system, rankings
from validation.published.rows import BASELINE_BAR, CGOPIPE_BAR, COLUMNS, RANKING_BAR, THROUGHPUT, Row, read_rows
from validation.published.setups import pose, schedule_of

S1 = Row("S1", "cgopipe", "mtbench", True, 128, micro_batch_size=36, num_micro_batches=14, tokens_per_s=30.122)


@pytest.fixture(scope="module")
def predictions():
    """Every published row, predicted once."""
    return list(predict_all(read_rows(THROUGHPUT), jobs=2))


def mean_absolute_error(group):
    return fmean(abs(one.error) for one in group)


def write(tmp_path, *rows, columns=COLUMNS):
    return write_rows(tmp_path / "runs.csv", rows, columns)


def cells(**given):
    usual = {"setting": "S1", "schedule": "cgopipe", "workload": "mtbench", "padded": "yes", "gen_len": "32"}
    return {**usual, "micro_batch_size": "36", "num_micro_batches": "14", **given}


class TestRows:
    def test_the_published_rows_are_all_there(self):
        rows = read_rows(THROUGHPUT)
        counts = {name: sum(row.schedule == name for row in rows) for name in ("cgopipe", "flexgen", "flexgen-c")}
        assert (len(rows), counts) == (58, {"cgopipe": 20, "flexgen": 14, "flexgen-c": 12})
        assert all(row.tokens_per_s for row in rows)

    def test_no_row_finished_more_requests_than_its_policy_holds(self):
        for row in read_rows(THROUGHPUT):
            if row.requests_finished:
                assert row.requests_finished <= row.micro_batch_size * row.num_micro_batches, row

    def test_measured_times_agree_with_measured_throughputs(self):
        for row in read_rows(THROUGHPUT):
            if row.time_s:
                assert row.requests_finished * row.gen_len / row.time_s == pytest.approx(row.tokens_per_s, rel=2e-3)

    def test_what_a_file_leaves_open_is_none(self, tmp_path):
        path = write(tmp_path, cells(micro_batch_size="", num_micro_batches="", note="no policy"))
        assert read_rows(path) == [Row("S1", "cgopipe", "mtbench", True, 32, note="no policy")]

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"gen_len": "many"}, r"line 2: gen_len: 'many' is not allowed"),
            ({"gen_len": "0"}, r"line 2: gen_len: '0' is not allowed; give a whole number"),
            ({"padded": "maybe"}, r"line 2: padded: 'maybe' is not allowed; give yes or no"),
            ({"tokens_per_s": "-3"}, r"line 2: tokens_per_s: '-3' is not allowed; give a number above 0"),
            ({"setting": ""}, r"line 2: setting is empty"),
        ],
    )
    def test_a_bad_cell_is_named_with_its_line(self, tmp_path, given, said):
        with pytest.raises(InputError, match=said):
            read_rows(write(tmp_path, cells(**given)))

    def test_a_missing_column_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"no column gen_len; needed are setting"):
            read_rows(write(tmp_path, columns=[name for name in COLUMNS if name != "gen_len"]))


class TestSetups:
    def test_a_row_becomes_its_machine_model_and_policy(self):
        setup = pose(S1).setup
        assert (setup.problem.hardware.name, setup.problem.model.name) == ("gcp-t4", "mixtral-8x7b")
        assert (setup.policy.micro_batch_size, setup.policy.batch_size) == (36, 504)

    @pytest.mark.parametrize(
        ("setting", "machine", "model"),
        [("S7", "gcp-4xt4", "mixtral-8x22b"), ("S8", "gcp-2xt4", "dbrx"), ("S9", "gcp-4xt4", "dbrx")],
    )
    def test_settings_without_rows_here_are_known_too(self, setting, machine, model):
        problem = pose(replace(S1, setting=setting, num_micro_batches=2)).setup.problem
        assert (problem.hardware.name, problem.model.name) == (machine, model)

    def test_deepspeed_is_zero_with_as_much_of_its_weights_page_locked_as_fits(self):
        one = replace(S1, schedule="deepspeed", micro_batch_size=32, num_micro_batches=1)
        assert schedule_of(one).name == "zero"
        assert pose(one).setup.policy.pin_weights == 1
        setup = pose(replace(one, setting="S6")).setup
        assert setup.policy.pin_weights == pytest.approx(208 / 281, abs=2e-3), "281 GB of 416, half of which may be"
        assert predict_row(replace(one, setting="S6")).policy == "32×1 74% pinned"

    def test_without_a_policy_the_schedules_own_best_is_taken_and_said(self):
        posed = pose(replace(S1, schedule="deepspeed", micro_batch_size=None, num_micro_batches=None))
        assert posed.setup.shape.num_micro_batches == 1
        assert "own best" in posed.assumed

    def test_more_requests_than_the_policy_holds_mean_larger_micro_batches(self):
        row = replace(S1, setting="S2", micro_batch_size=324, requests_finished=4592)
        posed = pose(row)
        assert posed.setup.policy.micro_batch_size == 328
        assert "4592 requests" in posed.assumed

    def test_a_run_that_is_short_of_memory_by_the_plan_is_predicted_all_the_same(self):
        posed = pose(replace(S1, num_micro_batches=60))
        assert "host memory" in posed.assumed
        assert predict_row(replace(S1, num_micro_batches=60)).tokens_per_s > 0


class TestReasons:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"setting": "S5"}, "setting 'S5' is unknown; known: S1, S2"),
            ({"schedule": "flexgem"}, "did you mean flexgen"),
            ({"workload": "mtbenth"}, "mtbenth"),
            ({"gpu": "L4"}, "gpu 'L4' is not what setting S1 has: 1 T4"),
            ({"n_gpu": 2}, "n_gpu 2 is not what setting S1 has: 1 T4"),
            ({"num_micro_batches": None}, "give both, or neither"),
        ],
    )
    def test_a_row_that_cannot_be_predicted_gets_a_reason(self, given, said):
        one = predict_row(replace(S1, **given))
        assert one.tokens_per_s is None
        assert said in one.reason


class TestPredictions:
    def test_every_row_is_predicted(self, predictions):
        assert [one.reason for one in predictions if one.tokens_per_s is None] == []

    def test_errors_are_within_what_is_asked(self, predictions):
        groups = by_system(predictions)
        assert mean_absolute_error(groups.pop("cgopipe")) <= CGOPIPE_BAR
        for name, group in groups.items():
            assert mean_absolute_error(group) <= BASELINE_BAR, name

    def test_hrm_is_far_off_beside_it(self, predictions):
        assert all(one.hrm_error > abs(one.error) for one in predictions)
        groups = by_system(predictions).values()
        assert all(sum(one.hrm_error for one in group) / len(group) > 1 for group in groups), "more than twice too high"

    def test_systems_come_out_in_their_order(self, predictions):
        ranked = rankings(predictions)
        assert len(ranked) == 12
        assert sum(ranked.values()) / len(ranked) >= RANKING_BAR

    def test_policy_and_schedule_each_help(self, predictions):
        """Table 5 of the paper: FlexGen with its own policy, with CGOPipe's, with more; then CGOPipe."""
        rates = {
            (one.row.schedule, one.row.micro_batch_size, one.row.num_micro_batches): one.tokens_per_s
            for one in predictions
            if one.row.cell == ("S1", "mtbench", True, 128)
        }
        order = [("flexgen", 8, 139), ("flexgen", 36, 14), ("flexgen", 36, 31), ("cgopipe", 36, 14)]
        assert [rates[one] for one in order] == sorted(rates[one] for one in order)


def test_rankings_compare_systems_and_take_means_of_repetitions():
    def of(system, measured, said, note=""):
        return Predicted(replace(S1, schedule=system, tokens_per_s=measured, note=note), said, None)

    repeated = [of("cgopipe", 10.0, 5.0), of("cgopipe", 20.0, 15.0), of("flexgen", 12.0, 9.0)]
    assert list(rankings(repeated).values()) == [True]
    assert list(rankings([*repeated[:2], of("flexgen", 12.0, 11.0)]).values()) == [False]
    assert rankings([repeated[0], of("flexgen", 12.0, 9.0, "policy ablation")]) == {}


def test_kernels_alone_take_what_figure_9_shows():
    errors = {}
    for one in predict_kernels(Hardware.load("gcp-l4")):
        errors.setdefault(one.name, []).append(abs(one.error))
    means = {name: sum(values) / len(values) for name, values in errors.items()}
    assert means["KV transfer H2D latency"] < 0.02
    assert means["CPU GQA attention latency"] < 0.10
    assert means["GPU MoE FFN latency"] < 0.05


def test_several_t4_have_the_values_of_one():
    one = Hardware.load("gcp-t4")
    for name in ("gcp-2xt4", "gcp-4xt4"):
        several = Hardware.load(name)
        for path in ("device.gemm.compute", "device.experts.memory", "device.launch_latency", "link.h2d"):
            assert several.value(path) == one.value(path)


class TestCommand:
    def test_a_file_of_ones_own(self, tmp_path, capsys):
        path = write(tmp_path, cells(tokens_per_s="15.6"), cells(setting="S5"))
        assert main(["published", "--predict", str(path), "--json", "-", "--jobs", "1"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content.keys() == {"schema", "rows"}
        first, second = content["rows"]
        assert (first["setting"], first["schedule"], first["gen_len"]) == ("S1", "cgopipe", 32)
        assert first["measured_tokens_per_s"] == 15.6
        assert first["predicted_tokens_per_s"] == pytest.approx(15.6, rel=0.2)
        assert first["hrm_tokens_per_s"] > 50
        assert second["predicted_tokens_per_s"] is None
        assert "S5" in second["reason"]

    def test_tables_for_a_person(self, tmp_path, capsys):
        path = write(
            tmp_path,
            cells(tokens_per_s="15.6"),
            cells(schedule="deepspeed", micro_batch_size="32", num_micro_batches="1"),
        )
        assert main(["published", "--predict", str(path), "--jobs", "1"]) == 0
        out = capsys.readouterr().out
        assert "36×14" in out
        assert "mean |error|" in out

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (["--predict", "nowhere.csv"], "nowhere.csv: cannot be read"),
            (["--write-presets"], "give --fit too"),
            (["--jobs", "0"], "--jobs: 0 is not allowed"),
        ],
    )
    def test_mistakes_are_one_line(self, capsys, argv, said):
        assert main(["published", *argv]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
