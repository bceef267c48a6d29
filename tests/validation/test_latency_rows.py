"""Rows of published rates: what is read of them, and what of a bad row is said."""

import pytest
from row_files import write_rows

from sim import simulation
from traces.errors import InputError
from validation.cli import main
from validation.published.latency.placement import (
    Chosen,
    Options,
    Placing,
    options_in_words,
    placement_in_words,
    read_placement,
)
from validation.published.latency.rows import (
    COLUMNS,
    LATENCY,
    BadRow,
    Metric,
    is_latency_file,
    read_latency_rows,
)
from validation.published.rows import THROUGHPUT


def cells(**given):
    usual = {"system": "llama.cpp", "model": "gpt-oss-120b", "gpu": "RTX 3090", "metric": "decode throughput"}
    return {**usual, "value": "33.14", "unit": "tok/s", **given}


def write(tmp_path, *rows, columns=COLUMNS):
    return write_rows(tmp_path / "rates.csv", rows, columns)


def read_one(tmp_path, **given):
    (row,), bad = read_latency_rows(write(tmp_path, cells(**given)))
    assert bad == []
    return row


class TestReading:
    def test_the_published_rows_are_all_there(self):
        rows, bad = read_latency_rows(LATENCY)
        assert (len(rows), bad) == (34, [])
        assert all(row.value for row in rows)
        assert len({row.name for row in rows}) == 34

    def test_the_two_kinds_of_files_are_told_apart(self):
        assert is_latency_file(LATENCY)
        assert not is_latency_file(THROUGHPUT)
        assert not is_latency_file(LATENCY.with_name("none.csv"))

    @pytest.mark.parametrize(
        ("given", "metric", "prompt_len", "gen_len"),
        [
            ({"metric": "prefill throughput pp512"}, Metric.PREFILL, 512, None),
            ({"metric": "decode throughput tg64"}, Metric.DECODE, 1, 64),
            ({"metric": "decode", "prompt_len": "1K"}, Metric.DECODE, 1024, None),
            ({"metric": "prefill", "prompt_len": "300"}, Metric.PREFILL, 300, None),
            ({"metric": "per-token latency", "unit": "s", "gen_len": "7"}, Metric.TOKEN, None, 7),
            ({"metric": "Seconds per token", "unit": "s"}, Metric.TOKEN, None, None),
        ],
    )
    def test_the_metric_says_what_of_which_tokens(self, tmp_path, given, metric, prompt_len, gen_len):
        row = read_one(tmp_path, **given)
        assert (row.metric, row.prompt_len, row.gen_len) == (metric, prompt_len, gen_len)

    def test_values_come_in_seconds_or_tokens_a_second(self, tmp_path):
        assert read_one(tmp_path, metric="per-token latency", unit="ms", value="250").value == pytest.approx(0.25)
        assert read_one(tmp_path, unit="tokens/s", value="4").value == 4
        assert read_one(tmp_path, value="").value is None

    def test_requests_are_all_that_run_together(self, tmp_path):
        assert read_one(tmp_path, micro_batch="4", n_micro_or_batches="3").num_requests == 12

    def test_words_in_the_place_of_a_prompts_length_name_a_data_set(self, tmp_path):
        row = read_one(tmp_path, prompt_len="ShareGPT")
        assert (row.prompt_len, row.dataset) == (None, "ShareGPT")

    def test_a_byte_order_mark_and_columns_that_are_not_needed_are_read_over(self, tmp_path):
        path = write(tmp_path, cells(dram_gb="64", link="PCIe4", notes="one"), columns=COLUMNS)
        path.write_text("\ufeff# a comment\n" + path.read_text())
        assert len(read_latency_rows(path)[0]) == 1

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"metric": "speed"}, "metric: 'speed' is not known"),
            ({"metric": ""}, "metric is empty"),
            ({"system": ""}, "system is empty"),
            ({"value": "-3"}, "value: '-3' is not allowed; give a number above 0"),
            ({"value": "fast"}, "value: 'fast' is not allowed"),
            ({"unit": "s"}, "unit: 's' is not one of decode throughput; give tok/s"),
            ({"metric": "per-token latency"}, "unit: 'tok/s' is not one of seconds per token; give s"),
            ({"micro_batch": "0"}, "micro_batch: '0' is not allowed"),
            ({"prompt_len": "12x"}, "prompt_len: '12x' is not allowed; give a whole number"),
            ({"n_gpu": "two"}, "n_gpu: 'two' is not allowed"),
        ],
    )
    def test_a_bad_row_is_told_by_its_number_and_the_others_are_read(self, tmp_path, given, said):
        rows, (bad,) = read_latency_rows(write(tmp_path, cells(), cells(**given), cells()))
        assert [row.number for row in rows] == [1, 3]
        assert bad.number == 2
        assert said in bad.reason

    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            ([name for name in COLUMNS if name != "model"], "no column model; give a CSV file with the columns"),
            ([*COLUMNS, "placment"], "unknown column 'placment'; did you mean placement"),
        ],
    )
    def test_columns_that_lack_or_are_unknown_are_named(self, tmp_path, columns, said):
        with pytest.raises(InputError, match=said):
            read_latency_rows(write(tmp_path, columns=columns))

    def test_a_row_with_too_few_cells_is_a_bad_row(self, tmp_path):
        path = write(tmp_path, cells())
        path.write_text(path.read_text() + "llama.cpp,gpt\n")
        assert read_latency_rows(path)[1] == [BadRow(2, f"2 cells for {len(COLUMNS)} columns")]


class TestPlacement:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", Placing()),
            ("n-cpu-moe=25", Placing(host_layers=25)),
            ("gpu-experts=0.4 frequency", Placing(device_share=0.4, chosen=Chosen.FREQUENCY)),
            ("gpu-experts=0.2 random", Placing(device_share=0.2)),
            ("gpu-experts=1", Placing(device_share=1.0)),
            ("gpu-experts=0.5 front-loading", Placing(device_share=0.5, chosen=Chosen.FRONT_LOADING)),
            ("all-gpu", Placing(device_share=1.0)),
            ("all-cpu", Placing(device_share=0.0)),
        ],
    )
    def test_the_column_is_read(self, text, expected):
        assert read_placement(text) == expected

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("n-cpu-moe", "is not known; did you mean n-cpu-moe?; give n-cpu-moe=25"),
            ("n-cpu-moe=-1", "'n-cpu-moe=-1' is not known"),
            ("gpu-experts=1.5", "gpu-experts=1.5 is not allowed; give a share from 0 to 1"),
            ("gpu-experts=40%", "gpu-experts=40% is not allowed"),
            ("gpu-experts=0.4 often", "'often' is not known; give frequency, random, uniform, front-loading"),
            ("gpu-experts=nan", "is not allowed"),
            ("somewhere", "placement: 'somewhere' is not known"),
        ],
    )
    def test_what_is_no_placement_is_told_with_the_forms(self, text, said):
        with pytest.raises(InputError) as told:
            read_placement(text)
        assert said in str(told.value)

    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            ("-ub 256 --n-cpu-moe 25", Placing(host_layers=25)),
            ("-ncmoe 99", Placing(host_layers=99)),
            ("-ncmoe 99, 124 cache slots", Placing(device_slots=124, chosen=Chosen.FREQUENCY)),
            ("GPU expert ratio 20%, placement random", Placing(device_share=0.2)),
            ("GPU expert ratio 80%, placement frequency", Placing(device_share=0.8, chosen=Chosen.FREQUENCY)),
            ("dual socket, 6 experts", Placing()),
        ],
    )
    def test_the_words_of_a_source_are_read(self, policy, expected):
        assert placement_in_words(policy) == expected

    def test_other_words_say_how_else_a_run_was_set(self):
        assert options_in_words("dual socket, 6 experts") == Options(top_k=6, sockets="dual")
        assert options_in_words("-ub 8192 --n-cpu-moe 28") == Options(piece_tokens=8192)
        assert options_in_words("GPU expert ratio 20%, placement random") == Options()


@pytest.fixture
def as_it_is(monkeypatch):
    """Without compiling first, which a test with the compiler switched off cannot."""
    monkeypatch.setattr(simulation, "compile_once", lambda: None)


@pytest.mark.usefixtures("as_it_is")
class TestCommand:
    def test_bad_rows_are_a_line_each_and_the_others_are_predicted(self, tmp_path, capsys):
        path = write(
            tmp_path,
            cells(placement="n-cpu-moe=25"),
            cells(metric="speed"),
            cells(model="gpt-oss-120c"),
            cells(placement="gpu-experts=2"),
        )
        assert main(["published", "--predict", str(path), "--jobs", "1"]) == 2
        shown = capsys.readouterr()
        told = shown.err.splitlines()
        assert [line.partition(": row ")[2].partition(":")[0] for line in told] == ["2", "3", "4"]
        assert all(line.startswith(f"error: {path}: row ") for line in told)
        assert "33.14" in shown.out

    def test_a_file_without_columns_of_its_kind_is_one_line(self, tmp_path, capsys):
        path = tmp_path / "some.csv"
        path.write_text("metric,model\ndecode,gpt-oss-120b\n")
        assert main(["published", "--predict", str(path)]) == 2
        assert "no column system" in capsys.readouterr().err
