"""Schedules on a stream of requests: each batch after batch, and those that can with prompts beside decode, too."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

from sim.admission import Prompts, RequestStream, Service
from sim.comparison.comparison import Asked, inputs_of, set_up, with_hash
from sim.comparison.streams.chunks import Chunked, serve_beside, serve_by_best
from sim.cost import Setup
from sim.planning import NothingFitsError, PolicyGrid, best_policy
from sim.problem import Problem
from sim.schedule import by_name, registered
from sim.simulation import STREAM_MEASURES, StreamResult, StreamSetup, serve_in_batches
from traces.cli import in_processes
from traces.data_frame import Tabular
from traces.errors import InputError

CANNOT_MIX = "its steps cannot carry prompts beside decode, so batch after batch alone"
"""And why is a trait of the system."""


@dataclass(frozen=True, slots=True)
class Served(Tabular):
    """What one schedule gives the requests of a stream with prompts in one place, or why it cannot."""

    schedule: str
    prompts: Prompts
    service: Service
    """As it was asked for, with the chunks that were taken where it leaves them open."""
    setup: Setup | StreamSetup | None
    result: StreamResult | None
    reason: str = ""
    note: str = ""
    """What was neither given nor usual."""

    @property
    def goodput_requests_per_s(self) -> float | None:
        """Requests a second that met the limits; None where there are none."""
        if self.result is None or not self.service.has_limits:
            return None
        limits = (self.service.ttft_limit_s, self.service.tpot_limit_s)
        return self.result.goodput(*(float("inf") if limit is None else limit for limit in limits))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what cannot be has every field too, with nothing in it."""
        is_beside = self.prompts is Prompts.BESIDE
        measured = {**dict.fromkeys(STREAM_MEASURES), "lanes": {}} if self.result is None else self.result.to_dict()
        return {
            "schedule": self.schedule,
            "prompts": self.prompts.value,
            "feasible": self.result is not None,
            "reason": self.reason,
            "policy": None if self.setup is None else self.setup.policy.to_dict(),
            "prefill_chunk": self.service.prefill_chunk if is_beside else None,
            "prompt_batches": self.service.num_prompts if is_beside else None,
            "block_tokens": self.service.block_tokens if is_beside else None,
            **measured,
            "goodput_requests_per_s": self.goodput_requests_per_s,
        }


@dataclass(frozen=True, slots=True)
class ServedComparison(Tabular, Sequence[Served]):
    """Schedules in the order in which they were asked for, each with prompts before decode first."""

    problem: Problem
    stream: RequestStream
    service: Service
    asked: Asked
    outcomes: tuple[Served, ...]

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, at: Any) -> Any:
        return self.outcomes[at]

    @property
    def best(self) -> Served:
        """The outcome of most tokens per second. Raises InputError, with every reason, if nothing can be served."""
        served = [(one.result.throughput_tokens_per_s, one) for one in self.outcomes if one.result is not None]
        if not served:
            reasons = " | ".join(dict.fromkeys(f"{one.schedule}: {one.reason}" for one in self.outcomes))
            raise InputError(f"{self.problem.hardware.name} serves none of the requests: {reasons}")
        return max(served, key=lambda both: both[0])[1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with all that the results follow from: equal hashes of that, equal results."""
        schedules = list(dict.fromkeys(one.schedule for one in self.outcomes))
        inputs = inputs_of(self.problem, schedules, self.asked)
        return {
            **with_hash({**inputs, "stream": _in_numbers(self.stream), "service": asdict(self.service)}),
            "results": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One for each schedule and place of prompts."""
        return [one.to_dict() for one in self.outcomes]


def compare_served(
    problem: Problem,
    stream: RequestStream,
    service: Service | None = None,
    schedules: Sequence[str] | None = None,
    asked: Asked | None = None,
    jobs: int | None = None,
    **policy: Any,
) -> ServedComparison:
    """Every schedule on the same requests, in the order given (default: all); `jobs` processes share the work.

    What `asked` and `policy` say, and what happens without, is as `compare` has it: a batch is what decodes at a time.
    Raises InputError for an unknown schedule or an impossible policy.
    """
    schedules = [by_name(name).name for name in (registered() if schedules is None else schedules)]
    asked, service = Asked.of(policy) if asked is None else asked, service or Service()
    work = partial(served_by, problem, stream, service, asked)
    found = in_processes(work, schedules, jobs)
    return ServedComparison(problem, stream, service, asked, tuple(one for both in found for one in both))


def served_by(
    problem: Problem,
    stream: RequestStream,
    service: Service,
    asked: Asked,
    name: str,
    places: Sequence[Prompts] = tuple(Prompts),
) -> tuple[Served, ...]:
    """One schedule, with prompts in those of the places in which it can have them.

    Where nothing is given of its policy, it has its best for each place: of one batch, and of prompts beside decode.
    """
    schedule = by_name(name)
    why = schedule.system.keeps_prompts_apart
    note = f"{CANNOT_MIX}: {why}" if why else ""
    places = [one for one in places if schedule.system.mixes or one is Prompts.BEFORE]
    usual = cache(partial(_fitting, problem, asked, name, len(stream.requests)))

    def serve(one: Served) -> Served:
        if one.prompts is Prompts.BESIDE and asked.leaves_open(name):
            return _with_result(one, partial(serve_by_best, problem, schedule, stream, service, asked.weight_bits))
        try:
            setup, said = usual()
        except NothingFitsError as error:
            return replace(one, reason=str(error), note="")
        notes = "; ".join(filter(None, (said, setup.policy.changes_outputs, one.note)))
        one = replace(one, setup=setup, note=notes)
        if one.prompts is Prompts.BESIDE:  # a chunk may fit the device where whole prompts do not
            return _with_result(one, partial(serve_beside, setup, stream, service))
        if setup.shortages:
            return replace(one, reason="; ".join(map(str, setup.shortages)), note="")
        return _with_result(one, partial(_in_batches, setup, stream, service, asked.exact))

    return tuple(serve(Served(name, one, service, None, None, note=note)) for one in places)


def _fitting(problem: Problem, asked: Asked, name: str, num_requests: int) -> tuple[Setup, str]:
    """The policy that is asked for, or the best; one for a batch of all requests where fewer come than that holds."""
    setup, note = set_up(problem, asked, name)
    most = setup.policy.batch_size
    if not asked.leaves_open(name) or most <= num_requests:
        return setup, note
    grid = PolicyGrid(weight_bits=asked.weight_bits)
    fewer = best_policy(problem, by_name(name), num_requests=num_requests, grid=grid).best.setup
    return fewer, f"planned for {num_requests:,} requests, fewer than the {most:,} of its best batch"


def _in_batches(setup: Setup, stream: RequestStream, service: Service, exact: bool) -> StreamResult:
    return serve_in_batches(setup, stream, service.priority, exact=exact)


def _with_result(one: Served, serve: Callable[[], StreamResult | Chunked]) -> Served:
    """The outcome with its result, or with the reason why there is none."""
    try:
        found = serve()
    except InputError as error:
        return replace(one, reason=str(error), note="")
    if isinstance(found, StreamResult):
        return replace(one, result=found)
    chosen = {name: getattr(found.setup, name) for name in ("prefill_chunk", "num_prompts", "block_tokens")}
    taken = replace(one.service, **chosen)
    notes = "; ".join(filter(None, (one.note, found.choice)))
    return replace(one, service=taken, setup=found.setup, result=found.result, note=notes)


def _in_numbers(stream: RequestStream) -> dict[str, Any]:
    """A stream as JSON values, with a hash instead of its requests."""
    numbers = json.dumps([list(asdict(one).values()) for one in stream.requests]).encode()
    return {
        "name": stream.name,
        "num_requests": len(stream.requests),
        "prompt_tokens": stream.prompt_tokens,
        "generated_tokens": stream.generated_tokens,
        "sha256": hashlib.sha256(numbers).hexdigest(),
    }
