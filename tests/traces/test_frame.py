"""The frame of all command lines: one shape of a command, one line for a mistake, files before tables, progress."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, strategies as st
from terminal import in_terminal, unread

from traces.cli import (
    INTERRUPTED,
    Command,
    CommandLine,
    OneLineParser,
    add_jobs,
    add_json,
    add_plot,
    bars,
    deliver,
    one_of,
    positive_int,
    progress,
    project_version,
    run_command,
    write_json,
)
from traces.errors import InputError


def command(run, name="cut", **options):
    """A command that takes a word."""
    return Command(name, "cut something", ("wood",), lambda parser: parser.add_argument("what"), run, **options)


@pytest.fixture
def program(monkeypatch):
    """A program of two commands; what they were given comes out of the first."""
    module = ModuleType("a_module")
    module.seen = []
    module.CUT = command(lambda args: module.seen.append(args.what) or 3)
    monkeypatch.setitem(sys.modules, "a_module", module)
    inner = CommandLine("inner", "Do it deeper.", {"cut": "a_module:CUT"})
    return CommandLine(
        "prog", "Cut and break.", {"cut": "a_module:CUT", "break": "not_there:BREAK", "deep": inner}
    ), module


class TestProgram:
    def test_runs_the_command_and_returns_its_exit_code(self, program):
        main, module = program[0].main, program[1]
        assert main(["cut", "wood"]) == 3
        assert main(["deep", "cut", "stone"]) == 3
        assert module.seen == ["wood", "stone"]

    def test_imports_no_other_command(self, program):
        program[0].parser(["cut"])
        with pytest.raises(ModuleNotFoundError, match="not_there"):
            program[0].parser([])

    @pytest.mark.parametrize(("path", "prog"), [(["cut"], "prog cut"), (["deep", "cut"], "prog deep cut")])
    def test_examples_are_written_as_the_user_would(self, program, path, prog, capsys):
        with pytest.raises(SystemExit):
            program[0].main([*path, "--help"])
        assert capsys.readouterr().out.endswith(f"examples:\n  {prog} wood\n")

    def test_says_its_version(self, program, capsys):
        with pytest.raises(SystemExit) as end:
            CommandLine("prog", "Cut.", {"cut": "a_module:CUT"}).main(["--version"])
        assert end.value.code == 0
        assert capsys.readouterr().out == f"cgopipe {project_version()}\n"

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            ([], "error: the following arguments are required: COMMAND (see prog --help)\n"),
            (["cut"], "error: the following arguments are required: what (see prog cut --help)\n"),
            (["cut", "a", "--depth"], "error: unrecognized arguments: --depth (see prog --help)\n"),
            (["cat"], "invalid choice: 'cat'"),
        ],
    )
    def test_a_mistake_is_one_line(self, program, argv, said, capsys):
        del program[0].commands["break"]
        assert program[0].main(argv) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def stopped(error):
    def run(_):
        raise error

    return run


class TestCommand:
    def run(self, one):
        parser = OneLineParser()
        one.add_arguments(parser)
        parser.set_defaults(command=one)
        return run_command(lambda: parser, ["wood"])

    def test_an_input_error_is_one_line_with_its_notes(self, capsys):
        error = InputError("wood: too hard")
        error.add_note("use a saw")
        assert self.run(command(stopped(error))) == 2
        assert capsys.readouterr().err == "error: wood: too hard (use a saw)\n"

    def test_ctrl_c_says_what_is_kept(self, capsys):
        one = command(stopped(KeyboardInterrupt()), interrupted="interrupted: half of it is cut")
        assert self.run(one) == INTERRUPTED
        assert capsys.readouterr().err == "interrupted: half of it is cut\n"

    def test_a_missing_library_is_one_line_that_says_what_to_install(self, capsys):
        def run(_):
            import not_installed_anywhere.at_all  # noqa: F401

        assert self.run(command(run, needs="engine")) == 2
        assert capsys.readouterr().err == (
            "error: cut: needs not_installed_anywhere, which is not installed: pip install 'cgopipe[engine]'\n"
        )
        with pytest.raises(ModuleNotFoundError):
            self.run(command(run))

    def test_a_missing_module_of_a_library_that_is_there_is_no_matter_of_installing(self):
        def run(_):
            import json.not_there  # noqa: F401

        with pytest.raises(ModuleNotFoundError):
            self.run(command(run, needs="engine"))


class TestOptions:
    def parsed(self, *argv):
        parser = OneLineParser()
        add_json(parser)
        add_plot(parser, "it")
        add_jobs(parser)
        parser.add_argument("--place", type=one_of("here", "there"))
        return parser.parse_args(argv)

    @given(st.integers(1, 10**12))
    def test_whole_numbers_of_at_least_1_are_read(self, number):
        assert positive_int(str(number)) == number

    @given(st.integers(max_value=0).map(str) | st.floats().map(str) | st.sampled_from(["", "x", "1e3", "0x10"]))
    def test_all_else_is_refused(self, text):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1"):
            positive_int(text)

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (["--jobs", "0"], "--jobs: 0 is not allowed; give a whole number of at least 1"),
            (["--jobs", "all"], "--jobs: all is not allowed; give a whole number of at least 1"),
            (["--place", "hree"], "--place: 'hree' is none of here, there; did you mean here or there?"),
            (["--plot", "a.gif"], "--plot: 'a.gif' is not a picture; its name must end in .png, .svg, .pdf"),
        ],
    )
    def test_a_wrong_value_is_one_line_before_any_work(self, argv, said):
        with pytest.raises(InputError) as caught:
            self.parsed(*argv)
        assert str(caught.value).startswith(said)

    def test_what_is_right_is_taken(self):
        args = self.parsed("--jobs", "3", "--plot", "A.PNG", "--json", "-", "--place", "there")
        assert (args.jobs, args.plot, args.json, args.place) == (3, "A.PNG", "-", "there")


class TestDeliver:
    def told(self, tmp_path, json_to):
        """What a command did, in order."""
        order = []

        def content():
            order.append("content")
            return {"x": 1}

        def write(path):
            assert Path(path).name.endswith("-a.png"), "under another name, until all is there"
            Path(path).write_text("drawn")
            order.append("plot")

        args = argparse.Namespace(json=json_to)
        plot = str(tmp_path / "a.png")
        assert deliver(args, content, lambda: order.append("shown"), (plot, write), (None, write)) == 0
        assert [one.read_text() for one in tmp_path.iterdir() if one.suffix == ".png"] == ["drawn"]
        return order

    def test_files_come_before_anything_on_standard_output(self, tmp_path):
        assert self.told(tmp_path, str(tmp_path / "a.json")) == ["plot", "content", "shown"]
        assert json.loads((tmp_path / "a.json").read_text()) == {"schema": 1, "x": 1}

    def test_json_on_standard_output_takes_the_place_of_tables(self, tmp_path, capsys):
        assert self.told(tmp_path, "-") == ["plot", "content"]
        assert json.loads(capsys.readouterr().out) == {"schema": 1, "x": 1}

    def test_without_json_nothing_is_made_for_it(self, tmp_path):
        assert self.told(tmp_path, None) == ["plot", "shown"]

    def test_a_file_that_cannot_be_written_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"no/a.json: cannot be written: No such file"):
            write_json(tmp_path / "no" / "a.json", {})


@pytest.mark.parametrize(
    "tell", ["sys.stdout.write('x' * 10**6)", "[rich.console.Console().print('x' * 70) for _ in range(2000)]"]
)
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(tell):
    script = (
        "import argparse, sys; from traces.cli import run_command; import rich.console\n"
        f"def run(_): {tell}; return 0\n"
        "parser = argparse.ArgumentParser(); parser.set_defaults(command=run)\n"
        "sys.exit(run_command(lambda: parser, []))"
    )
    assert unread([sys.executable, "-c", script]) == (0, "")


def test_what_was_started_to_ignore_ctrl_c_goes_on():
    """As `nohup python -m sim sweep ... &` in a script."""
    script = (
        "import argparse, sys; from traces.cli import run_command\n"
        "def run(_): print('begun', flush=True); sys.stdin.read(); print('done'); return 0\n"
        "parser = argparse.ArgumentParser(); parser.set_defaults(command=run)\n"
        "sys.exit(run_command(lambda: parser, []))"
    )
    for ignores, code, out in ((True, 0, "done\n"), (False, INTERRUPTED, "")):
        usual = signal.signal(signal.SIGINT, signal.SIG_IGN if ignores else signal.default_int_handler)
        try:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen([sys.executable, "-c", script], text=True, **pipes)
        finally:
            signal.signal(signal.SIGINT, usual)
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        if not ignores:
            process.wait(30)
        assert (process.communicate(timeout=30)[0], process.returncode) == (out, code)


class TestProgress:
    def test_a_pipe_hears_nothing(self, capsys):
        with progress("cutting", 3) as shown:
            shown.advance()
            shown.at(2, 4, "breaking")
        assert capsys.readouterr() == ("", "")
        assert (shown.done, shown.total, shown.doing) == (2, 4, "breaking")

    def test_long_work_says_now_and_then_how_far_it_is(self, capsys, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
        with progress("cutting", 2000, unit="planks", lines=True) as shown:
            for seconds in (10, 29.9, 30, 45, 59, 61):
                now[0] = seconds
                shown.advance(250)
        assert capsys.readouterr().err == (
            "cutting: 750/2,000 planks after 30 s\ncutting: 1,500/2,000 planks after 61 s\n"
        )

    def test_a_terminal_sees_a_bar(self):
        script = (
            "from traces.cli import progress\n"
            "with progress('cutting', 3, unit='planks') as shown:\n"
            "    shown.advance(2); shown.say('breaking')\n"
            "with progress('thinking'): pass\n"
        )
        shown = in_terminal([sys.executable, "-c", script])
        assert "2/3 planks" in shown
        assert "breaking" in shown
        assert "thinking" in shown

    def test_rows_that_go_to_a_file_stay_out_of_the_terminal(self, tmp_path):
        script = (
            "from traces.cli import progress\n"
            "with progress('cutting', 3) as shown:\n"
            "    print('a row'); shown.advance()\n"
        )
        with (tmp_path / "rows").open("w") as rows:
            assert "a row" not in in_terminal([sys.executable, "-c", script], stdout=rows)
        assert (tmp_path / "rows").read_text() == "a row\n"
