"""The proof that mistakes turn tests red: the harness on a toy project, and the place of every shipped mutant."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.mutants import trials
from tests.mutants.__main__ import main, print_trials
from tests.mutants.mutants import Mutant, chosen, load
from tests.mutants.trials import (
    KILLED,
    ROOT,
    SURVIVED,
    TIMED_OUT,
    UNCLEAR,
    Trial,
    broken_by,
    copy_project,
    files_of_tests,
)
from traces.errors import InputError

PARTS = ("toy", "tests")

SOURCE = """
def add(a, b):
    return a + b


def unseen(a):
    return a + 1


def down(a):
    while a > 0:
        a -= 1
    return a
"""

TESTS = """
from toy.sums import add, down


def test_zero():
    assert add(0, 0) == 0


def test_two():
    assert add(2, 1) == 3


def test_down():
    assert down(2) == 0
"""

SUBTRACTS = Mutant("subtracts", "toy/sums.py", "adds wrongly", "a + b", "a - b", ("tests/test_toy.py",))
UNSEEN = Mutant("unseen", "toy/sums.py", "adds two", "a + 1", "a + 2", ("tests/test_toy.py",))
ENDLESS = Mutant("endless", "toy/sums.py", "counts no more", "a -= 1", "a -= 0", ("tests/test_toy.py::test_down",))


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    (root / "toy").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "toy" / "__init__.py").write_text("")
    (root / "toy" / "sums.py").write_text(SOURCE)
    (root / "tests" / "test_toy.py").write_text(TESTS)
    return root


def prove(root, mutants):
    """The trials of a toy project's mutants, in one copy."""
    found = []
    asyncio.run(trials.prove(mutants, found.append, 1, root, PARTS))
    return found


class TestHarness:
    def test_a_mistake_that_a_test_sees_is_killed_and_one_that_none_sees_survives(self, project):
        """One after the other in one copy: the first leaves nothing behind, though its file was as long and as old."""
        outcomes = {one.mutant: one for one in prove(project, [SUBTRACTS, UNSEEN])}
        assert outcomes[SUBTRACTS].verdict == KILLED
        assert outcomes[SUBTRACTS].by == "tests/test_toy.py::test_two"
        assert outcomes[UNSEEN].verdict == SURVIVED
        assert outcomes[UNSEEN].by == ""
        assert not outcomes[UNSEEN].killed

    def test_the_project_itself_is_not_touched(self, project):
        before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
        prove(project, [SUBTRACTS])
        assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before

    def test_a_copy_is_as_before_when_the_test_itself_breaks_down(self, project, tmp_path):
        copy = copy_project(project, PARTS, tmp_path / "copy")

        with pytest.raises(ZeroDivisionError), broken_by(SUBTRACTS, copy):
            1 / ((copy / "toy" / "sums.py").read_text() == SOURCE)
        assert (copy / "toy" / "sums.py").read_text() == SOURCE

    def test_a_test_that_hangs_is_ended_and_marked(self, project, monkeypatch):
        monkeypatch.setattr("tests.mutants.trials.LEAST_LIMIT_S", 0.1)
        monkeypatch.setattr("tests.mutants.trials.LIMIT_FACTOR", 2)
        (outcome,) = prove(project, [ENDLESS])
        assert outcome.verdict == TIMED_OUT
        assert outcome.killed

    def test_a_file_of_tests_that_cannot_be_imported_has_noticed(self, project):
        gone = replace(SUBTRACTS, was="def add", becomes="def plus")
        (outcome,) = prove(project, [gone])
        assert outcome.verdict == KILLED
        assert outcome.by == "tests/test_toy.py"

    def test_tests_that_are_red_without_a_mutant_prove_nothing(self, project):
        (project / "tests" / "test_toy.py").write_text("def test_wrong():\n    assert 1 == 2\n")
        with pytest.raises(InputError, match=r"test_toy.py::test_wrong is red without any mutant"):
            prove(project, [SUBTRACTS])

    def test_tests_that_are_not_there_prove_nothing(self, project):
        with pytest.raises(InputError, match="red without any mutant"):
            prove(project, [replace(SUBTRACTS, tests=("tests/test_toy.py::test_gone",))])

    def test_a_failure_between_trials_leaves_no_copy_behind(self, project, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

        def refuse(trial):
            assert list(tmp_path.glob("mutants-*"))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            asyncio.run(trials.prove([UNSEEN, ENDLESS], refuse, 2, project, PARTS))
        assert not list(tmp_path.glob("mutants-*"))

    def test_each_test_is_tried_once_without_mutants_and_a_file_covers_its_parts(self):
        one = replace(SUBTRACTS, tests=("t.py::a", "t.py::b", "u.py::c"))
        other = replace(UNSEEN, tests=("t.py::b", "u.py"))
        assert files_of_tests([one, other]) == {"t.py": ["t.py::a", "t.py::b"], "u.py": ["u.py"]}


class TestStale:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"was": "a * b"}, "stale: what it replaces occurs 0 times in toy/sums.py"),
            ({"was": "return a"}, "stale: what it replaces occurs 3 times"),
            ({"file": "toy/gone.py"}, "stale: there is no toy/gone.py"),
            ({"becomes": "a + b"}, "changes nothing"),
            ({"becomes": "a +"}, "no valid Python"),
        ],
    )
    def test_a_mutant_that_does_not_fit_the_source_is_an_error(self, project, change, said):
        with pytest.raises(InputError, match=said):
            prove(project, [replace(SUBTRACTS, **change)])

    def test_a_catalogue_names_each_mutant_once_and_whole(self, tmp_path):
        one = '[["a.py"]]\nname = "x"\nbreaks = "b"\nwas = "c"\nbecomes = "d"\ntests = ["t"]\n'
        (tmp_path / "one.toml").write_text(one)
        assert load(tmp_path) == (Mutant("x", "a.py", "b", "c", "d", ("t",)),)
        (tmp_path / "two.toml").write_text(one)
        with pytest.raises(InputError, match="two mutants are called 'x'"):
            load(tmp_path)
        (tmp_path / "two.toml").write_text(one.replace('was = "c"\n', ""))
        with pytest.raises(InputError, match="was: missing"):
            load(tmp_path)


class TestCatalogue:
    @pytest.mark.parametrize("mutant", load(), ids=lambda mutant: mutant.name)
    def test_a_mutant_fits_the_source_and_names_tests_that_are_there(self, mutant):
        assert mutant.applied_in(ROOT)
        for test in mutant.tests:
            file, *names = test.split("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert all(f"class {name}:" in text or f"def {name}(" in text for name in names)

    def test_every_part_of_the_prediction_is_there(self):
        files = {mutant.file for mutant in load()}
        parts = {
            "problem": "batch policy/policy policy/splits policy/placement model/layer",
            "cost": "durations memory/plan memory/buffers memory/activations",
            "hrm": "estimate",
            "simulation": "fair_sharing simulator recurrence sampling prediction",
        }
        assert {f"sim/{folder}/{name}.py" for folder, names in parts.items() for name in names.split()} <= files
        schedules = {path.name for path in (ROOT / "sim" / "schedule").rglob("*.py")}
        assert schedules - {Path(file).name for file in files if file.startswith("sim/schedule/")} == {
            "__init__.py",
            "buffers.py",
            "registry.py",
            "task.py",
        }

    def test_mutants_are_chosen_by_name(self):
        assert [mutant.name for mutant in chosen([SUBTRACTS, UNSEEN], ["unseen"])] == ["unseen"]
        assert chosen([SUBTRACTS, UNSEEN], []) == (SUBTRACTS, UNSEEN)
        with pytest.raises(InputError, match=r"no mutant is called 'unsee'; did you mean unseen\?"):
            chosen([SUBTRACTS, UNSEEN], ["unsee"])


class TestCommand:
    def test_a_real_mistake_turns_a_real_test_red(self, capsys):
        assert main(["--only", "recurrence-without-lanes", "--json", "-"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["mutants"], told["killed"]) == (1, 1)
        (outcome,) = told["outcomes"]
        assert outcome["verdict"] == "killed"
        assert outcome["by"].startswith("tests/")

    @pytest.mark.parametrize(("mutants", "code"), [([SUBTRACTS], 0), ([SUBTRACTS, UNSEEN], 1)])
    def test_a_survivor_is_an_error_and_is_named(self, project, mutants, code, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr("tests.mutants.mutants.load", lambda: mutants)
        monkeypatch.setattr("tests.mutants.trials.prove", partial(trials.prove, root=project, parts=PARTS))
        file = tmp_path / "outcomes.json"
        assert main(["--jobs", "2", "--json", str(file)]) == code
        shown = capsys.readouterr().out
        assert ("unseen survived: adds two" in shown) == (code == 1)
        assert f"1 of {len(mutants)} mutants killed" in shown
        assert [one["killed"] for one in json.loads(file.read_text())["outcomes"]] == [True, False][: len(mutants)]

    def test_an_interrupted_run_says_what_was_done_and_leaves_nothing(self, project, tmp_path):
        """Ctrl-C while a test hangs."""
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        script = (
            "import signal, sys; from functools import partial; from pathlib import Path; import test_mutants as own\n"
            "from tests.mutants import mutants, trials\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # nohup's children ignore it
            f"trials.prove = partial(trials.prove, root=Path({str(project)!r}), parts=own.PARTS)\n"
            "mutants.load = lambda: (own.SUBTRACTS, own.ENDLESS)\n"
            "sys.exit(own.main(['--jobs', '1']))\n"
        )
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'repository'}", "TMPDIR": str(temporary)}
        with subprocess.Popen(
            [sys.executable, "-c", script], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            _wait_until(lambda: any("a -= 0" in file.read_text() for file in temporary.glob("*/*/toy/sums.py")))
            time.sleep(1.5)  # until the first outcome has been told
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.endswith("interrupted: 1 of 2 mutants were tried\n")
        assert "1 of 2 mutants killed, 1 not tried" in out
        assert not list(temporary.iterdir())

    def test_the_list_shows_what_each_breaks(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "500")
        assert main(["--list"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "barrier-dropped" in shown
        assert "FlexGen's lanes do not meet after a turn of the attention" in shown

    @pytest.mark.parametrize(
        ("options", "said"),
        [(["--jobs", "0"], "--jobs: 0 is not allowed"), (["--only", "barrier-droped"], "did you mean barrier-dropped")],
    )
    def test_wrong_input_is_one_line(self, options, said, capsys):
        assert main([*options]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

    def test_what_pytest_itself_could_not_do_is_shown(self, capsys):
        print_trials([Trial(SUBTRACTS, UNCLEAR, "", 1.0, "INTERNALERROR> [no markup]")], 1, 2.0)
        shown = capsys.readouterr().out
        assert "INTERNALERROR> [no markup]" in shown
        assert "0 of 1 mutants killed, 1 not noticed" in shown


def _wait_until(true):
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")
