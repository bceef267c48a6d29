"""Work shared out among threads: every item once, phase after phase, whoever comes late; errors, and the end."""

import contextlib
import threading

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from engine.host import HostThreads
from engine.host.turns import all_done, next_piece, piece_done, turns_at
from sim.simulation import jitted

MANY_BYTES = 1 << 40


@jitted
def _twice(done, order, turns):
    """Counts each item of two phases; notes for one of the second how many of the first were done when it began."""
    first, last = next_piece(turns, 0)
    while first < last:
        for item in range(first, last):
            done[0, item] += 1
        piece_done(turns, 0, first, last)
        first, last = next_piece(turns, 0)
    if not all_done(turns, 0):
        return False
    first, last = next_piece(turns, 1)
    while first < last:
        for item in range(first, last):
            done[1, item] += 1
            order[item] = done[0].sum()
        piece_done(turns, 1, first, last)
        first, last = next_piece(turns, 1)
    return all_done(turns, 1)


def shared_out(threads, items, second):
    done, order = np.zeros((2, max(items, second)), np.int64), np.zeros(second, np.int64)
    threads.share_out(lambda turns: _twice(done, order, turns), (items, second), MANY_BYTES)
    return done, order


@pytest.fixture(scope="module", params=[1, 2, 5])
def threads(request):
    with contextlib.closing(HostThreads(request.param)) as made:
        yield made


@settings(max_examples=30, deadline=None)
@given(items=st.integers(1, 500), second=st.integers(1, 500))
def test_every_item_is_done_once_and_the_second_phase_behind_the_first(threads, items, second):
    done, order = shared_out(threads, items, second)
    assert (done[0, :items] == 1).all()
    assert (done[1, :second] == 1).all()
    assert (order == items).all()


def test_nothing_to_do_is_done_at_once(threads):
    threads.share_out(lambda turns: _twice(np.zeros((2, 1), np.int64), np.zeros(1, np.int64), turns), (0, 0), 0)


def test_pieces_are_the_items_cut_up():
    turns = turns_at((10,), 4)
    pieces = [next_piece(turns, 0) for _ in range(5)]
    assert pieces == [(0, 3), (3, 6), (6, 9), (9, 10), (10, 10)]
    assert not all_done(turns, 0)
    for piece in pieces:
        piece_done(turns, 0, *piece)
    assert all_done(turns, 0)


def test_few_bytes_wake_nobody():
    before = threading.active_count()
    with contextlib.closing(HostThreads(4)) as threads:
        threads.share_out(lambda turns: _twice(np.zeros((2, 9), np.int64), np.zeros(9, np.int64), turns), (9, 9), 1000)
        assert threading.active_count() == before
        shared_out(threads, 9, 9)
        assert threading.active_count() == before + 3
    assert threading.active_count() == before


def test_an_error_of_a_helper_is_raised_and_the_next_work_is_done():
    caller = threading.get_ident()
    begun = threading.Event()

    def work(turns):
        if threading.get_ident() != caller:
            next_piece(turns, 0)  # takes a piece, and does not do it
            begun.set()
            raise MemoryError("no room for scratch")
        begun.wait(10)
        while True:
            first, last = next_piece(turns, 0)
            if first == last:
                return all_done(turns, 0)
            piece_done(turns, 0, first, last)

    with contextlib.closing(HostThreads(2)) as threads:
        with pytest.raises(MemoryError, match="no room for scratch"):
            threads.share_out(work, (100,), MANY_BYTES)
        done, _ = shared_out(threads, 20, 20)
        assert (done == 1).all()


def test_who_comes_late_finds_nothing_and_nobody_waits():
    """The helper is held up before it looks for work, until the work is done."""
    caller, begun, over, came = threading.get_ident(), *(threading.Event() for _ in range(3))
    done, order = np.zeros((2, 50), np.int64), np.zeros(50, np.int64)

    def work(turns):
        if threading.get_ident() != caller:
            begun.set()
            over.wait(10)
            _twice(done, order, turns)
            came.set()
            return True
        begun.wait(10)
        return _twice(done, order, turns)

    with contextlib.closing(HostThreads(2)) as threads:
        threads.share_out(work, (50, 50), MANY_BYTES)
        assert (done == 1).all()
        over.set()
        assert came.wait(10)
        assert (done == 1).all()


def test_who_waited_in_vain_for_the_first_phase_works_at_the_second():
    """The caller holds the only piece of the first phase until the helper has given up once."""
    caller = threading.get_ident()
    gave_up, began = threading.Event(), threading.Event()

    def work(turns):
        helps = threading.get_ident() != caller
        first, last = next_piece(turns, 0)
        while first < last:
            if not helps:
                gave_up.wait(10)
            piece_done(turns, 0, first, last)
            first, last = next_piece(turns, 0)
        if not all_done(turns, 0):
            if helps:
                gave_up.set()
            return False
        if not helps:
            assert began.wait(10), "the helper did not come back"
        first, last = next_piece(turns, 1)
        while first < last:
            if helps:
                began.set()
            piece_done(turns, 1, first, last)
            first, last = next_piece(turns, 1)
        return all_done(turns, 1)

    with contextlib.closing(HostThreads(2)) as threads:
        threads.share_out(work, (1, 8), MANY_BYTES)
