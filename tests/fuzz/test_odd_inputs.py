"""Whatever files and words a command is given: a right answer, or one line and exit code 2."""

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from odd_inputs import LINES_OF_COMMANDS, OddInput, Ran, odd_input, right_files, written

FEW = settings(deadline=None, derandomize=True, max_examples=500, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=5000)


def check(seed):
    odd = odd_input(Random(seed))
    with tempfile.TemporaryDirectory() as folder:
        Ran.of(odd, Path(folder)).check(Path(folder))


@given(seed=st.integers(0, 2**62))
@FEW
def test_an_odd_input_gets_a_right_answer_or_one_line(seed):
    check(seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(4))
def test_so_do_many(part):
    for number in range(5000):
        check(part * 10**6 + number)


@pytest.mark.parametrize("line", LINES_OF_COMMANDS)
def test_what_they_are_made_of_is_right(line, tmp_path):
    """Else every command would be refused for the same reason, and nothing else were tried."""
    kinds = right_files()
    files = {name: written(name, content).encode() for name, content in kinds.values()}
    words = [word.format(**{kind: name for kind, (name, _) in kinds.items()}) for word in line.split()]
    ran = Ran.of(OddInput(files, words), tmp_path)
    assert ran.code == 0, ran.error
    ran.check(tmp_path)
