"""One colour for one thing in all pictures."""

from sim.schedule import registered
from traces.cli import colour_of


def test_a_schedule_and_a_lane_have_their_colour_beside_whatever_others():
    for name in (*registered(), "GPU", "H2D"):
        assert colour_of(name, 0) == colour_of(name, 5), name
    assert colour_of("GPU:1", 0) == colour_of("GPU", 0)


def test_no_two_of_them_share_one():
    names = list(registered())
    assert len({colour_of(name, 0) for name in names}) == len(names)


def test_other_names_are_told_apart_by_their_place():
    assert len({colour_of("elsewhere", at) for at in range(8)}) == 8
