"""`python -m sim sweep`: plan and simulate every combination of settings, a row each, and draw maps of the rows."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.problem import add_problem
from traces.cli import INTERRUPTED, add_command
from traces.errors import InputError

if TYPE_CHECKING:
    from sim.sweep.axes import Axis
    from sim.sweep.rows import RowFile
    from sim.sweep.sweep import Base, Row, Sweep
    from sim.sweep.workers import Workers

SUMMARY = "plan and simulate every combination of settings"
EXAMPLES = (
    "python -m sim sweep --axis hardware.link.h2d=8..64x8 --axis gen_len=32,128 --out rows.csv",
    "python -m sim sweep --axis 'cpu:hardware.host.peak+hardware.host_memory.bandwidth*=1..10x4' --out x.csv",
    "python -m sim sweep --axis gen_len=32,64,128,256 --axis model=mixtral-8x7b,dbrx --out rows.jsonl --resume",
    "python -m sim sweep --rows rows.csv --map hardware.link.h2d,gen_len,throughput_tokens_per_s --plot map.png",
)
AXIS_HELP = (
    "what varies: NAME=V1,V2 or NAME=FROM..TOxCOUNT; NAME*= multiplies a number of the machine, NAME+NAME sets several "
    "together, LABEL:NAME names the column. Names: model, hardware, workload, schedule, gen_len, prompt_len, padded, "
    "policy.FIELD, hardware.NUMBER[UNIT]; may be given several times"
)


def add_to(commands: Any) -> None:
    """Add the command to the others."""
    _add_arguments(add_command(commands, "sweep", SUMMARY, run, EXAMPLES))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what varies, and what does not")
    what.add_argument("--axis", action="append", default=[], metavar="AXIS", help=AXIS_HELP)
    add_problem(what)
    what.add_argument("--micro-batch-size", type=int, metavar="REQUESTS", help="fix μ")
    what.add_argument("--num-micro-batches", type=int, metavar="COUNT", help="fix n; the batch is μ × n")
    what.add_argument("--policy", metavar="FILE", help="fix the policy: JSON fields")
    what.add_argument("--by", metavar="WHAT", default="simulator", help="simulator, or hrm: the paper's search alone")
    what.add_argument("--exact", action="store_true", help="simulate every decode step instead of interpolating")
    where = parser.add_argument_group("rows")
    where.add_argument("--out", metavar="FILE", help=".csv or .jsonl (default: CSV on standard output)")
    where.add_argument("--resume", action="store_true", help="go on with an --out file that an earlier run began")
    where.add_argument("--jobs", type=int, metavar="N", help="points at once (default: one per core of the backend)")
    where.add_argument("--backend", metavar="NAME", default="loky", help="loky (processes), threading, dask or ray")
    where.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler or Ray head that is there already")
    picture = parser.add_argument_group("map")
    picture.add_argument("--map", metavar="X,Y,VALUE", help="columns of the rows; more values make more panels")
    picture.add_argument("--plot", metavar="FILE", help="draw the map: .png, .svg or .pdf")
    picture.add_argument("--rows", metavar="FILE", help="draw from rows that are there, and run nothing")


def run(args: argparse.Namespace) -> int:
    """Run the sweep, or only draw. Raises InputError for anything the user gave wrong, before any work."""
    _check_flags(args)
    if args.rows:
        from sim.sweep.rows import read_rows

        _draw(read_rows(Path(args.rows)), args)
        return 0
    from sim.sweep.rows import RowFile
    from sim.sweep.sweep import Sweep
    from sim.sweep.workers import Workers

    base = _base(args)
    sweep = Sweep(base, _axes(args))
    if args.map:
        from sim.sweep.picture import check_columns

        check_columns(args.map, sweep.columns)
    workers = Workers(args.jobs, args.backend, args.cluster)
    target = RowFile(Path(args.out) if args.out else None, sweep, resume=args.resume)
    try:
        with closing(target):
            infeasible = _write(sweep, target, workers)
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted: {_kept(target.done, len(sweep), args.out)}\n")
        return INTERRUPTED
    if args.out:
        sys.stderr.write(f"{target.done} rows in {args.out}; {infeasible} of those written now do not fit\n")
    if args.map and args.out:
        from sim.sweep.rows import read_rows

        _draw(read_rows(Path(args.out)), args)
    return 0


def _check_flags(args: argparse.Namespace) -> None:
    from sim.sweep.rows import FORMATS
    from sim.sweep.sweep import HRM, SIMULATOR
    from sim.sweep.workers import BACKENDS
    from traces.cli import check_format

    for flag in ("micro_batch_size", "num_micro_batches", "jobs", "prompt_len", "gen_len"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            name = flag.replace("_", "-")
            raise InputError(f"--{name}: {value} is not allowed; give a whole number of at least 1")
    if bool(args.map) != bool(args.plot):
        raise InputError("--map says what to draw and --plot where: give both")
    if args.map:
        check_format(args.plot)
    if args.rows and (args.axis or args.out):
        raise InputError("--rows draws rows that are there: leave out --axis and --out")
    if args.rows and not args.map:
        raise InputError("--rows: give --map and --plot too")
    if not args.rows and not args.axis:
        raise InputError("--axis: missing; say what varies, as in --axis gen_len=32,64,128,256")
    if args.map and not args.rows and not args.out:
        raise InputError("--map: give --out too, so that the rows of the picture stay")
    if args.out and Path(args.out).suffix.lower() not in FORMATS:
        raise InputError(f"--out: {args.out!r} must end in {' or '.join(FORMATS)}")
    if args.resume and not args.out:
        raise InputError("--resume: give the --out file to go on with")
    if args.by not in (SIMULATOR, HRM):
        raise InputError(f"--by: {args.by!r} is neither {SIMULATOR} nor {HRM}")
    if args.backend not in BACKENDS:
        raise InputError(f"--backend: unknown backend {args.backend!r}; there are {', '.join(BACKENDS)}")


def _base(args: argparse.Namespace) -> "Base":
    from sim.hrm import SCHEDULE
    from sim.problem import read_policy_file
    from sim.schedule import registered
    from sim.sweep.sweep import SIMULATOR, Base

    policy: dict[str, Any] = {}
    every = [*registered()] if args.by == SIMULATOR else [SCHEDULE]
    schedules = [name.strip() for name in (args.schedules or "").split(",") if name.strip()] or every
    sizes = {"micro_batch_size": args.micro_batch_size, "num_micro_batches": args.num_micro_batches}
    if args.policy:
        if any(sizes.values()):
            raise InputError("--policy holds the sizes already: leave out --micro-batch-size and --num-micro-batches")
        schedule, policy = read_policy_file(Path(args.policy))
        schedules = [schedule] if schedule is not None and not args.schedules else schedules
    else:
        policy = {name: value for name, value in sizes.items() if value is not None}
    names = tuple(dict.fromkeys(schedules))
    what = (args.model, args.hardware, args.workload, args.prompt_len, args.gen_len, args.padded)
    return Base(*what, names, policy, args.exact, args.by)


def _axes(args: argparse.Namespace) -> "tuple[Axis, ...]":
    """The axes; numbers of machines have the units of the first machine."""
    from sim.problem import Hardware
    from sim.sweep.axes import parse_axes

    swept = [text.partition("=")[2] for text in args.axis if text.partition("=")[0].rpartition(":")[2] == "hardware"]
    first = swept[0].split(",")[0].strip() if swept else args.hardware
    axes = parse_axes(args.axis, Hardware.load(first))
    names = {name for axis in axes for name in axis.names}
    for name, flag in (("schedule", args.schedules), ("prompt_len", args.prompt_len), ("gen_len", args.gen_len)):
        if name in names and flag is not None:
            raise InputError(f"--{name.replace('_', '-').replace('schedule', 'schedules')}: {name} is an axis already")
    return axes


def _write(sweep: "Sweep", target: "RowFile", workers: "Workers") -> int:
    """Write the rows that are missing as they come; returns how many of them do not fit."""
    from sim.sweep.sweep import row_of

    infeasible = 0
    with closing(workers.map(row_of, sweep.points(target.done))) as results:
        for row in _with_bar(results, target.done, len(sweep)):
            target.append(row)
            infeasible += not row["feasible"]
    return infeasible


def _with_bar(results: "Iterable[Row]", done: int, total: int) -> "Iterator[Row]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("points", total=total, completed=done)
        for row in results:
            yield row
            bar.advance(task)


def _kept(done: int, total: int, out: str | None) -> str:
    if out is None:
        return f"{done} of {total} rows are out"
    return f"{done} of {total} rows are in {out}; --resume goes on with the others"


def _draw(rows: "Sequence[Row]", args: argparse.Namespace) -> None:
    from sim.sweep.picture import draw_map

    try:
        draw_map(rows, args.map, args.plot)
    except OSError as error:
        raise InputError(f"{args.plot}: cannot be written: {error.strerror}") from None
