"""What a command says reaches any terminal, and what it cannot say is one line: characters, closed outputs, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from traces.cli import in_processes, write_json
from traces.cli.output import MOST_CHARACTERS, shortened
from traces.errors import MOST, InputError, check_count, shown
from traces.files import UNFINISHED, appearing

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "tests" / "golden" / "inputs" / "engine.json.gz"
SUMMARY = [sys.executable, "-m", "traces", "summary", str(ENGINE)]
ROOFLINE = [sys.executable, "-m", "sim", "roofline", "--plot"]


def run(argv, stdout=subprocess.PIPE, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, check=False, cwd=ROOT, env=env)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_terminal_of_few_characters_gets_those_that_say_nearly_the_same(environment):
    ran = run(SUMMARY, **environment)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"busy" in ran.stdout
    assert run([*SUMMARY, "--json", "-"], **environment).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs an output that is always full")
def test_a_full_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        ran = run(SUMMARY, stdout=full)
    assert (ran.returncode, ran.stderr) == (2, b"error: standard output: No space left on device\n")


def test_an_output_that_was_closed_before_is_one_line():
    ran = run(["bash", "-c", f"exec {' '.join(SUMMARY)} >&-"])
    assert (ran.returncode, ran.stderr) == (2, b"error: standard output: Bad file descriptor\n")


def test_errors_that_nobody_can_read_end_a_command_all_the_same():
    assert run(["bash", "-c", f"exec {' '.join(SUMMARY)}/no/such/file 2>&-"]).returncode == 2


def test_a_backend_of_matplotlib_that_there_is_not_stops_no_picture(tmp_path):
    ran = run([*ROOFLINE, str(tmp_path / "a.png")], MPLBACKEND="no-such-backend")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert (tmp_path / "a.png").stat().st_size


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_is_what_ctrl_c_is(asked, interruptible):
    script = (
        "import argparse, sys, time; from traces.cli import run_command\n"
        "def run(_):\n"
        "    try: print('begun', flush=True); time.sleep(60)\n"
        "    finally: print('put in order')\n"
        "parser = argparse.ArgumentParser(); parser.set_defaults(command=run)\n"
        "sys.exit(run_command(lambda: parser, []))"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", script], text=True, **pipes)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(asked)
    assert process.communicate(timeout=30) == ("put in order\n", "interrupted\n")
    assert process.returncode == 130


WORKING = (
    "import os, sys, time; from traces.cli import in_processes\n"
    "def work(_): print(os.getpid(), flush=True); time.sleep(60)\n"
    "if __name__ == '__main__': list(in_processes(work, [1, 2], 2))"
)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("asked", [signal.SIGKILL, signal.SIGINT])
def test_processes_that_share_work_end_with_their_parent(asked, tmp_path, interruptible):
    (tmp_path / "working.py").write_text(WORKING)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(tmp_path / "working.py")], text=True, env=env, **pipes)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(asked)
    process.wait(30)
    for _ in range(200):
        if not any(map(is_running, workers)):
            break
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def test_who_asks_no_more_leaves_no_process(tmp_path):
    results = in_processes(abs, [-1, -2, -3, -4], 2)
    assert next(results) == 1
    results.close()


class TestLines:
    def test_a_long_line_loses_its_middle(self):
        line = shortened(f"error: {'x' * 5000} is not allowed; give less")
        assert len(line) == MOST_CHARACTERS
        assert line.startswith("error: xxx")
        assert line.endswith("xxx is not allowed; give less")
        assert shortened("short") == "short"

    def test_a_message_is_one_line_whatever_it_repeats(self):
        assert str(InputError("a\nb\x1b[2J\ud800: no")) == "a\\nb\\x1b[2J\\ud800: no"

    def test_of_a_long_value_it_shows_how_it_begins(self):
        assert shown([1, 2]) == "[1, 2]"
        assert shown("x" * 5000) == f"'{'x' * 79}…"
        deep = []
        for _ in range(100_000):
            deep = [deep]
        assert shown(deep) == "this list"
        assert shown(10**5000) == "this int"

    def test_a_count_is_no_more_than_anybody_counts(self):
        assert check_count("n", MOST) == MOST
        with pytest.raises(InputError, match=f"n: {MOST + 1} is not allowed; give at most 1,000,000,000,000"):
            check_count("n", MOST + 1)


def write_half(path):
    with appearing(path) as unfinished:
        unfinished.write_text("hal")
        raise ValueError("half")


class TestFiles:
    def test_a_file_is_there_whole_or_as_it_was(self, tmp_path):
        path = tmp_path / "a.json"
        write_json(path, {"x": 1})
        before = path.read_text()
        with pytest.raises(TypeError):
            write_json(path, {"x": object()})
        with pytest.raises(ValueError, match="half"):
            write_half(path)
        assert path.read_text() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_what_a_killed_process_left_goes_with_the_next(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        left, others = (tmp_path / UNFINISHED.replace("*", f"{dead.pid}-{name}") for name in ("a.json", "b.json"))
        mine = tmp_path / UNFINISHED.replace("*", f"{os.getppid()}-a.json")
        for one in (left, others, mine):
            one.write_text("half a fi")
        write_json(tmp_path / "a.json", {})
        assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["a.json", others.name, mine.name])

    def test_a_device_is_written_to_and_stays_one(self):
        write_json("/dev/null", {})
        assert not Path("/dev/null").is_file()
