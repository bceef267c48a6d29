"""`cgopipe` and `python -m PACKAGE`: the same commands, quick to start, kind to pipes and terminals."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest
from terminal import in_terminal, unread

from engine import cli as engine
from engine.running.harness import evaluate
from sim import cli as sim
from traces import cli as traces
from traces.cli import Command, CommandLine, project_version
from validation import cli as validation
from validation.console import PROGRAM, main

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ROOT / "tests" / "golden" / "inputs"
PACKAGES = (traces.PROGRAM, sim.PROGRAM, engine.PROGRAM, validation.PROGRAM)
SMALL = "--model olmoe-1b-7b --hardware t4 --prompt-len 60 --gen-len 3 --schedules cgopipe,zero --jobs 1"
PLANNED = "--model INPUTS/four-layers.json --prompt-len 60 --gen-len 2 --schedules zero --jobs 1"
SIZED = f"{SMALL} --micro-batch-size 8 --num-micro-batches 2"


def commands(program: CommandLine):
    """Every command of a program, under the words that call it."""
    for name, place in program.commands.items():
        if isinstance(place, CommandLine):
            yield from ((f"{name} {inner}", one) for inner, one in commands(place))
        else:
            yield name, resolve_name(place)


EVERY = dict(commands(PROGRAM))


def cgopipe(line):
    """The program as its console script runs it."""
    words = [word.replace("INPUTS", str(INPUTS)) for word in line.split()]
    return [sys.executable, "-c", "import sys; from validation.console import main; sys.exit(main())", *words]


def run(argv, **options):
    return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, **options)


def test_the_console_scripts_are_the_program_and_the_harness_that_knows_our_model():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {name: resolve_name(where) for name, where in scripts.items()} == {
        "cgopipe": main,
        "cgopipe-lm-eval": evaluate,
    }


def test_it_has_the_commands_of_all_packages():
    assert set(EVERY) >= set().union(*(dict(commands(one)) for one in PACKAGES[1:]))
    assert {one for one in EVERY if one.startswith("trace ")} == {f"trace {one}" for one, _ in commands(traces.PROGRAM)}


@pytest.mark.parametrize("words", EVERY)
def test_a_command_is_called_what_it_says_and_has_examples_that_can_be_given(words):
    one = EVERY[words]
    assert isinstance(one, Command)
    assert words.split()[-1] == one.name
    assert one.examples
    for example in one.examples:
        argv = [*words.split(), *shlex.split(example.partition(" > ")[0])]
        assert PROGRAM.parser(argv).parse_args(argv).command is one


@pytest.mark.parametrize("program", [PROGRAM, *PACKAGES], ids=lambda one: one.prog)
def test_help_shows_every_command_and_version_the_version(program, capsys):
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit) as end:
            program.main([flag])
        assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^    {name} ?", shown, re.MULTILINE) for name in program.commands)
    assert shown.endswith(f"cgopipe {project_version()}\n")


def test_help_loads_no_heavy_library():
    """One process asks for all of it, one command's after the other's, and says what came in with which."""
    heavy = ("torch", "transformers", "numpy", "scipy", "matplotlib", "rich", "simpy", "numba", "joblib", "shtab")
    lines = ["--help", *(f"{words} --help" for words in EVERY)]
    script = (
        "import contextlib, io, sys; from validation.console import main\n"
        f"for line in {lines}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        main(line.split())\n"
        "    assert shown.getvalue().startswith('usage: '), line\n"
        f"    print('loaded by', line + ':', [name for name in {heavy} if name in sys.modules])"
    )
    ran = run([sys.executable, "-c", script])
    assert ran.stdout.splitlines() == [f"loaded by {line}: []" for line in lines], ran.stderr


WITHOUT_TORCH = """
import importlib.util, sys
ABSENT = ("torch", "transformers", "scipy")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from traces.cli import frame
frame.find_spec = lambda name: None if name in ABSENT else importlib.util.find_spec(name)
from validation.console import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "line",
    [
        "run --model m --input i --output o",
        "demo",
        "calibrate --model m --out m.toml",
        "campaign --out c",
        "published --fit --jobs 1",
    ],
)
def test_without_torch_the_engine_says_in_a_line_what_to_install(line):
    ran = run([sys.executable, "-c", WITHOUT_TORCH, *line.split()])
    assert ran.returncode == 2
    said = rf"error: {line.split()[0]}: needs \w+, which is not installed: pip install 'cgopipe\[engine\]'\n"
    assert re.fullmatch(said, ran.stderr), ran.stderr


def test_without_torch_the_simulator_works():
    ran = run([sys.executable, "-c", WITHOUT_TORCH, *f"compare {SIZED} --json -".split()])
    assert json.loads(ran.stdout)["results"][0]["feasible"], ran.stderr


WRITES = {
    f"compare {SIZED} --plot a.png --trace traces --json a.json": ["a.json", "a.png", "traces"],
    f"plan {PLANNED} --quick --plot a.png --out policy.json --json a.json": ["a.json", "a.png", "policy.json"],
    "roofline --plot a.png --json a.json": ["a.json", "a.png"],
    "replay INPUTS/engine.json.gz --hardware INPUTS/engine.toml --plot a.png --json a.json": ["a.json", "a.png"],
    "published --predict INPUTS/rows.csv --jobs 1 --json a.json": ["a.json"],
    "trace summary INPUTS/engine.json.gz --json a.json": ["a.json"],
    "trace critical-path INPUTS/engine.json.gz --json a.json": ["a.json"],
    "trace diff INPUTS/engine.json.gz INPUTS/engine.json.gz --json a.json": ["a.json"],
}


@pytest.mark.parametrize("line", WRITES, ids=lambda line: " ".join(line.split()[:2]))
def test_files_are_written_although_nobody_reads_the_output(line, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # of matplotlib, where a small picture is crowded
    assert unread(cgopipe(line), cwd=tmp_path) == (0, "")
    assert sorted(one.name for one in tmp_path.iterdir()) == WRITES[line]
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == 1


def test_a_terminal_sees_that_it_compiles_once_and_plans(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    line = f"compare {PLANNED} --micro-batch-size 4"
    first, second = (in_terminal(cgopipe(line), NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert "compiling (once)" in first
    assert "compiling" not in second
    assert "planning" in second


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_command_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*EVERY, "critical-path", "--micro-batch-size"):
        assert word.split()[-1].removeprefix("--") in script, word


@pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash")
def test_bash_completes_commands_options_and_files(tmp_path, capsys):
    main(["completion", "bash"])
    script = tmp_path / "cgopipe"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "out-of-here.json").touch()
    asks = """
        for line in "$@"; do
            read -ra COMP_WORDS <<< "$line"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            _shtab_cgopipe; echo "${COMPREPLY[@]}"
        done"""
    lines = ["cgopipe com", "cgopipe trace cr", "cgopipe plan --obj", "cgopipe compare --json out"]
    ran = run(["bash", "-c", f"cd {tmp_path}; source ./cgopipe; {asks}", "bash", *lines])
    assert [line.split() for line in ran.stdout.splitlines()] == [
        ["compare", "completion"],
        ["critical-path"],
        ["--objective"],
        ["out-of-here.json"],
    ], ran.stderr
