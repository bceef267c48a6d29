"""The options that say which requests come and how they are served, for every command that serves them."""

import argparse
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.admission.rules import BLOCK_TOKENS, Priority, Service
from traces.cli import positive_int
from traces.errors import InputError, check_choice, check_count, shown
from traces.files import is_file

if TYPE_CHECKING:
    from sim.admission.requests import RequestStream
    from sim.problem import Problem

DRAWN = ("arrivals", "gen_lens", "prompt_lens", "seed")
"""What a file of requests says itself."""

OF_MIXED_STEPS = ("prefill_chunk", "prompt_batches", "block_tokens", "preempt")
"""What says nothing where every prompt is computed before decode."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Which requests come and how they are served, as it is written. Raises InputError, naming the option."""

    requests: int | str
    """How many of the workload, or a file that holds them."""
    arrivals: str | None = None
    gen_lens: str | None = None
    prompt_lens: str | None = None
    seed: int | None = None
    prefill_chunk: int | None = None
    prompt_batches: int | None = None
    block_tokens: int | None = None
    priority: str | None = None
    preempt: bool | None = None
    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.requests, int):
            check_count("requests", self.requests)
        for name in DRAWN if isinstance(self.requests, str) else ():
            if getattr(self, name) is not None:
                raise InputError(f"{option(name)}: {self.requests} says it for each request: leave the option out")
        check_count("seed", self.seed or 0, least=0)
        self.service  # noqa: B018
        if isinstance(self.requests, int):
            self._drawn()

    @property
    def service(self) -> Service:
        """How they are served."""
        return Service(
            self.prefill_chunk,
            self.prompt_batches,
            Priority(check_choice("priority", self.priority or Priority.ARRIVAL, Priority)),
            bool(self.preempt),
            self.ttft,
            self.tpot,
            self.block_tokens,
        )

    def check_prompt_len(self, given: int | None) -> None:
        """Raise InputError where all prompts are given one length, and these requests have their own."""
        if given and (isinstance(self.requests, str) or self.prompt_lens):
            raise InputError("--prompt-len: these requests have prompts of their own lengths: leave it out")

    def check_schedules(self, names: Sequence[str]) -> None:
        """Raise InputError for what says something of mixed steps where no schedule has them."""
        from sim.schedule import by_name, registered

        given = [option(name) for name in OF_MIXED_STEPS if getattr(self, name)]
        if given and not any(by_name(name).system.mixes for name in names):
            can = " or ".join(name for name, schedule in registered().items() if schedule.system.mixes)
            raise InputError(
                f"{given[0]}: none of {', '.join(names)} carries prompts beside decode: leave it out, or compare {can}"
            )

    def stream_of(self, problem: "Problem", gen_len: int | None = None) -> "tuple[Problem, RequestStream]":
        """The requests, and the problem with them as its workload. `gen_len` is what a file's may generate.

        Where the problem's prompts are padded, so are these.
        """
        from sim.admission.requests import RequestStream

        workload = problem.workload
        if isinstance(self.requests, int):
            problem = self._with_prompts(problem, self.requests)
            return problem, RequestStream.of(problem.workload, self.requests, **self._drawn())
        stream = RequestStream.read(Path(self.requests), gen_len)
        stream = stream.padded() if workload.padded else stream
        return replace(problem, workload=stream.workload(padded=workload.padded)), stream

    def _with_prompts(self, problem: "Problem", count: int) -> "Problem":
        """The problem with prompts of the lengths that are drawn, or of its workload where none are."""
        from sim.admission.requests import CONSTANT, MOST_MEAN, PROMPTS, Lengths
        from sim.problem import Basis

        if self.prompt_lens in (None, CONSTANT):
            return problem
        prompts = Lengths.parse(str(self.prompt_lens), PROMPTS).drawn(int(MOST_MEAN), count, self.seed or 0)
        name, text = f"prompt-lens {self.prompt_lens}", "prompts of the lengths that were given"
        given: dict[str, Any] = {"name": name, "prompt_tokens": tuple(prompts), "description": text}
        given |= {"source": "given by the caller", "basis": Basis.ASSUMED}
        return replace(problem, workload=replace(problem.workload, **given))

    def _drawn(self) -> dict[str, Any]:
        from sim.admission.requests import CONSTANT, PROMPTS, Arrivals, Lengths

        lengths = Lengths.parse(self.gen_lens or CONSTANT)
        Lengths.parse(self.prompt_lens or CONSTANT, PROMPTS)
        return {"lengths": lengths, "arrivals": Arrivals.parse(self.arrivals or "at-once"), "seed": self.seed or 0}

    def files(self) -> dict[str, str]:
        """The files that requests come from, with hashes of what they hold."""
        named = (self.requests, self.arrivals, self.gen_lens, self.prompt_lens)
        paths = [Path(text) for text in named if isinstance(text, str) and is_file(text)]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def option(name: str) -> str:
    """A field as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def add_stream(group: Any) -> None:
    """Add them to a parser or a group of it."""
    which = "how many requests come in all, or a .jsonl or .csv file of them (default: one batch)"
    group.add_argument("--requests", metavar="N|FILE", help=which)
    when = "at-once (default), poisson:2/s, or a .jsonl file of times"
    group.add_argument("--arrivals", metavar="WHEN", help=when)
    lengths = "tokens after which requests end: constant (default: --gen-len), lognormal:100,0.8, or a .jsonl file"
    group.add_argument("--gen-lens", metavar="LENGTHS", help=lengths)
    prompts = "lengths of prompts, instead of a workload: lognormal:500,0.8, or a .jsonl file"
    group.add_argument("--prompt-lens", metavar="LENGTHS", help=prompts)
    group.add_argument("--seed", type=int, metavar="N", help="of what is drawn (default: 0)")
    chunk = "prompt tokens in a step beside those who decode (default: the best)"
    group.add_argument("--prefill-chunk", type=positive_int, metavar="TOKENS", help=chunk)
    micro_batches = (
        "micro-batches of prompts in a step, each of a chunk (default: 1, or with a policy that is searched the best)"
    )
    group.add_argument("--prompt-batches", type=positive_int, metavar="COUNT", help=micro_batches)
    block = f"tokens of a block of the KV cache (default: {BLOCK_TOKENS}, or with a policy that is searched the best)"
    group.add_argument("--block-tokens", type=positive_int, metavar="TOKENS", help=block)
    first = "who enters first: arrival (default), or longest: the longest prompt"
    group.add_argument("--priority", metavar="WHO", help=first)
    preempts = "let in more than there is room for to the end; the last one leaves, and is computed anew"
    group.add_argument("--preempt", action="store_true", default=None, help=preempts)
    well = "a request counts in goodput whose first token comes so soon"
    group.add_argument("--ttft", type=float, metavar="SECONDS", help=well)
    group.add_argument("--tpot", type=float, metavar="SECONDS", help="and each of the others, on average")


def stream_options(args: argparse.Namespace, swept: Collection[str] = ()) -> StreamOptions | None:
    """What the options say of requests, or None where they ask for one batch.

    Of `swept` settings each point of a sweep says more; where they have the number of requests, 1 stands for it here.
    Raises InputError for an option that says nothing without --requests.
    """
    given = {one.name: getattr(args, one.name) for one in fields(StreamOptions)}
    if given["requests"] is None and "requests" in swept:
        given["requests"] = "1"
    if given["requests"] is None:
        for name, value in given.items():
            if value is not None or name in swept:
                raise InputError(f"{option(name)}: says something of a stream of requests: give --requests N too")
        return None
    return StreamOptions(**{**given, "requests": number_or_path(given["requests"])})


def number_or_path(text: str) -> int | str:
    """How many requests there are, or the file that holds them. Raises InputError for a number below 1, and no file."""
    if re.fullmatch("-?[0-9]{1,30}", text):
        return check_count("requests", int(text))
    if Path(text).suffix.lower() not in (".jsonl", ".csv") and not is_file(text):
        raise InputError(f"requests: {shown(text)} is neither a whole number nor a file of requests (.jsonl or .csv)")
    return text
