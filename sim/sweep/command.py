"""Every combination of settings planned and simulated, a row each, and maps of the rows."""

import argparse
import sys
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from sim import admission, hrm, planning, problem, simulation, sweep as sweeps
from sim.problem import add_policy, add_problem, fixed_policy, schedules_of
from traces.cli import INTERRUPTED, Command, add_jobs, add_plot, one_of, progress, writing
from traces.errors import InputError, shown

AXIS_HELP = (
    "what varies: NAME=V1,V2 or NAME=FROM..TOxCOUNT; NAME*= multiplies a number of the machine, NAME+NAME sets several "
    "together, LABEL:NAME names the column. Names: model, hardware, workload, schedule, gen_len, prompt_len, padded, "
    "routing, policy.FIELD, hardware.NUMBER[UNIT]; of requests the options below; may be given several times"
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what varies, and what does not")
    what.add_argument("--axis", action="append", default=[], metavar="AXIS", help=AXIS_HELP)
    add_problem(what)
    add_policy(what)
    admission.add_stream(parser.add_argument_group("requests (without a number or a file, one batch)"))
    by = "simulator (default), or hrm: the paper's search alone"
    what.add_argument("--by", metavar="WHAT", type=one_of("simulator", "hrm"), default="simulator", help=by)
    what.add_argument("--exact", action="store_true", help="simulate every decode step instead of interpolating")
    planning.add_prices(what)
    where = parser.add_argument_group("rows")
    where.add_argument("--out", metavar="FILE", help=".csv or .jsonl (default: CSV on standard output)")
    where.add_argument("--resume", action="store_true", help="go on with an --out file that an earlier run began")
    add_jobs(where, "points at once (default: one per core of the backend)")
    backend = "loky (processes; default), threading, dask or ray"
    where.add_argument("--backend", metavar="NAME", type=one_of(*sweeps.BACKENDS), default="loky", help=backend)
    where.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler or Ray head that is there already")
    picture = parser.add_argument_group("map")
    picture.add_argument("--map", metavar="X,Y,VALUE", help="columns of the rows; more values make more panels")
    add_plot(picture, "the map")
    picture.add_argument("--rows", metavar="FILE", help="draw from rows that are there, and run nothing")


def run(args: argparse.Namespace) -> int:
    """Run the sweep, or only draw. Raises InputError for anything the user gave wrong, before any work."""
    _check_flags(args)
    if args.rows:
        return _draw(args.rows, args)
    axes = _axes(args)
    sweep = sweeps.Sweep(_base(args, {name for axis in axes for name in axis.names}), axes)
    if args.map:
        sweeps.check_columns(args.map, sweep.columns)
    if args.by != "hrm":
        simulation.compile_once()
    workers = sweeps.Workers(args.jobs, args.backend, args.cluster)
    target = sweeps.RowFile(Path(args.out) if args.out else None, sweep, resume=args.resume)
    try:
        with closing(target):
            infeasible = _write(sweep, target, workers)
    except KeyboardInterrupt:
        there = f"in {args.out}; --resume goes on with the others" if args.out else "out"
        sys.stderr.write(f"interrupted: {target.done} of {len(sweep)} rows are {there}\n")
        return INTERRUPTED
    if args.out:
        sys.stderr.write(f"{target.done} rows in {args.out}; {infeasible} of those written now do not fit\n")
    return _draw(args.out, args) if args.map else 0


def _check_flags(args: argparse.Namespace) -> None:
    out, known = Path(args.out) if args.out else None, sweeps.FORMATS
    mistakes = {
        "--map says what to draw and --plot where: give both": bool(args.map) != bool(args.plot),
        "--rows draws rows that are there: leave out --axis and --out": args.rows and (args.axis or out),
        "--rows: give --map and --plot too": args.rows and not args.map,
        "--axis: missing; say what varies, as in --axis gen_len=32,64,128,256": not (args.rows or args.axis),
        "--map: give --out too, so that the rows of the picture stay": args.map and not args.rows and not out,
        f"--out: {shown(args.out)} must end in {' or '.join(known)}": out and out.suffix.lower() not in known,
        "--resume: give the --out file to go on with": args.resume and not out,
    }
    for mistake, is_made in mistakes.items():
        if is_made:
            raise InputError(mistake)


def _base(args: argparse.Namespace, swept: Collection[str]) -> "sweeps.Base":
    schedule, policy = fixed_policy(args)
    if args.schedules or (schedule is None and args.by != "hrm"):
        names = schedules_of(args)
    else:
        names = [schedule or hrm.SCHEDULE]
    what = (args.model, args.hardware, args.workload, args.prompt_len, args.gen_len, args.padded)
    stream = admission.stream_options(args, swept)
    prices = planning.Prices.of(args)
    if args.by == "hrm" and prices.per_kwh is not None:
        raise InputError("--price-per-kwh: HRM says nothing of energy: leave it out, or --by hrm")
    how = (args.exact, args.by, args.routing, stream, args.sampled)
    return sweeps.Base(*what, tuple(names), policy, *how, tuple(args.settings), prices)


def _axes(args: argparse.Namespace) -> "tuple[sweeps.Axis, ...]":
    """The axes; numbers of machines have the units of the first machine."""
    swept = [text.partition("=")[2] for text in args.axis if text.partition("=")[0].rpartition(":")[2] == "hardware"]
    first = swept[0].split(",")[0].strip() if swept else args.hardware
    axes = sweeps.parse_axes(args.axis, problem.Hardware.load(first, args.settings))
    names = {name for axis in axes for name in axis.names}
    for name, flag in (("schedule", args.schedules), ("prompt_len", args.prompt_len), ("gen_len", args.gen_len)):
        if name in names and flag is not None:
            raise InputError(f"--{name.replace('_', '-').replace('schedule', 'schedules')}: {name} is an axis already")
    return axes


def _write(sweep: "sweeps.Sweep", target: "sweeps.RowFile", workers: "sweeps.Workers") -> int:
    """Write the rows that are missing as they come; returns how many of them do not fit."""
    infeasible = 0
    points = progress("simulating", len(sweep), done=target.done, unit="points")
    with points as shown, closing(workers.map(sweeps.row_of, sweep.points(target.done))) as results:
        for row in results:
            target.append(row)
            infeasible += not row["feasible"]
            shown.advance()
    return infeasible


def _draw(rows: str, args: argparse.Namespace) -> int:
    found = sweeps.read_rows(Path(rows))
    writing(args.plot, lambda path: sweeps.draw_map(found, args.map, path))
    return 0


COMMAND = Command(
    "sweep",
    "plan and simulate every combination of settings",
    (
        "--axis hardware.link.h2d=8..64x8 --axis gen_len=32,128 --out rows.csv",
        "--axis 'cpu:hardware.host.peak+hardware.host_memory.bandwidth*=1..10x4' --out x.csv",
        "--axis gen_len=32,64,128,256 --axis model=mixtral-8x7b,dbrx --out rows.jsonl --resume",
        "--rows rows.csv --map hardware.link.h2d,gen_len,throughput_tokens_per_s --plot map.png",
    ),
    _add_arguments,
    run,
)
