"""Published joules of a token: how near data sheets come, what a row is posed as, and rows that are wrong."""

from dataclasses import replace

import pytest

from traces.errors import InputError
from validation.published.latency.joules import JOULES, predict_joules, print_joules, read_joules_rows
from validation.published.latency.joules.predict import joules_of_row, setup_of
from validation.published.latency.joules.report import WITHIN
from validation.published.latency.joules.rows import Metered


@pytest.fixture(scope="module")
def rows():
    return read_joules_rows(JOULES)


@pytest.fixture(scope="module")
def predictions(rows):
    return list(predict_joules(rows, jobs=1))


def test_data_sheets_alone_come_near(predictions):
    """Of each system some; none is further off than a third."""
    near = [one.row.id for one in predictions if abs(one.error) <= WITHIN]
    assert {"TF-2", "TF-3", "TF-4", "ME-4", "ME-5"} <= set(near)
    assert max(abs(one.error) for one in predictions) < 0.35


def test_a_published_rate_stands_for_the_time(rows):
    """At half the rate, the device idles for as long again."""
    row = rows[0]
    usual, slow = joules_of_row(row), joules_of_row(replace(row, tokens_per_s=row.tokens_per_s / 2))
    idle_w = setup_of(row).problem.hardware.power.device.idle_w
    assert slow.at_published_rate - usual.at_published_rate == pytest.approx(idle_w / row.tokens_per_s)
    assert slow.at_own_rate == usual.at_own_rate


def test_what_is_metered_at_the_wall_is_all_of_the_machine(rows):
    device, wall = (joules_of_row(replace(rows[0], metered=one)).at_published_rate for one in Metered)
    assert wall > device * 1.1


def test_where_all_experts_are_computed_all_are_read(rows):
    all_of_them, used = (joules_of_row(replace(rows[3], experts=which)).at_published_rate for which in ("32", ""))
    assert all_of_them > 1.9 * used


def test_they_are_told(predictions, capsys):
    print_joules(predictions)
    told = capsys.readouterr().out
    assert "TF-1" in told
    assert "within 25%" in told


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",device,", ",card,", "row 1: "),
        (",39.79,", ",0,", "row 1: tokens_per_s: 0.0 is not allowed; it must be above 0"),
        (",39.79,", ",fast,", "row 1: Expected `float`"),
        (",1,32,", ",1,most,", "row 1: experts: 'most' is not a number"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, old, new, said):
    path = tmp_path / "joules.csv"
    path.write_text(JOULES.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"row 1") as caught:
        read_joules_rows(path)
    assert said in str(caught.value)
