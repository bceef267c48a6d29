"""A stream: requests with their lengths, in the order in which they arrive."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from sim.admission.requests.arrivals import AT_ONCE, Arrivals, arrival_ns
from sim.admission.requests.lengths import ALL_THEY_MAY, Lengths
from sim.admission.requests.request_file import request_lines
from sim.problem import DEFAULT_GEN_LEN, MOST_REQUESTS, Workload, request_length
from traces.errors import InputError, check_count


@dataclass(frozen=True, slots=True)
class StreamedRequest:
    """One request in numbers. Admission plans with `most_tokens`; how many it generates turns out as it runs."""

    id: int
    prompt_tokens: int
    most_tokens: int
    """Tokens that it may generate."""
    generated_tokens: int
    """Tokens after which it ends, by itself or at the limit."""
    arrival_ns: int = 0
    alone: bool = False
    """Whether it decodes in a micro-batch with nobody else, where requests join together."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "most_tokens", "generated_tokens"):
            check_count(f"request {self.id}: {name}", getattr(self, name))
        check_count(f"request {self.id}: arrival_ns", self.arrival_ns, least=0, most=2**62)
        if self.generated_tokens > self.most_tokens:
            raise InputError(
                f"request {self.id}: generated_tokens {self.generated_tokens} is more than the {self.most_tokens} that "
                f"it may generate: give at most these, or a larger max_tokens"
            )


@dataclass(frozen=True, slots=True)
class RequestStream:
    """Requests in order of arrival, of which each has its place here as its id. Raises InputError if there is none."""

    name: str
    requests: tuple[StreamedRequest, ...]

    def __post_init__(self) -> None:
        if not self.requests:
            raise InputError(f"stream {self.name}: has no request; give at least one")
        for place, (before, request) in enumerate(zip((None, *self.requests), self.requests, strict=False)):
            if request.id != place or (before is not None and before.arrival_ns > request.arrival_ns):
                raise InputError(
                    f"stream {self.name}: request {request.id} in place {place} is out of order: number requests from "
                    f"0 on as they arrive"
                )

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(one.prompt_tokens for one in self.requests)

    @property
    def generated_tokens(self) -> int:
        """Tokens that all requests generate, the one of prefill included: what throughput counts."""
        return sum(one.generated_tokens for one in self.requests)

    @classmethod
    def of(
        cls,
        workload: Workload,
        num_requests: int,
        *,
        lengths: Lengths = ALL_THEY_MAY,
        arrivals: Arrivals = AT_ONCE,
        seed: int = 0,
    ) -> Self:
        """A workload's questions, repeated as often as it takes; `seed` decides all that is drawn."""
        check_count("requests", num_requests, most=MOST_REQUESTS)
        most = workload.gen_len
        generated = lengths.drawn(most, num_requests, seed)
        times = arrivals.drawn_ns(num_requests, seed)
        numbers = zip(workload.requests(num_requests), generated, times, strict=True)
        found = (StreamedRequest(i, prompt, most, length, when) for i, (prompt, length, when) in enumerate(numbers))
        return cls(workload.name, tuple(found))

    @classmethod
    def read(cls, path: str | Path, gen_len: int | None = None) -> Self:
        """The requests of a file, each once: lines such as {"prompt_tokens": 77, "max_tokens": 64}, or a CSV table.

        A line says how long its prompt is as those of a workload do, or with the messages of OpenAI's batch format.
        A recorded trace says of a request how many `generated_tokens` it had, which else is all that it may, and when
        it came, as `arrival_s`. `max_tokens` is `gen_len` where it is not given, or without that as much as the usual
        length or the longest recorded one. Raises InputError with the line.
        """
        lines = request_lines(Path(path))
        if gen_len is None:
            recorded = (line["generated_tokens"] for where, line in lines if _generates(line, where))
            gen_len = max(DEFAULT_GEN_LEN, *recorded, 0)
        found = [_request(line, where, gen_len) for where, line in lines]
        found.sort(key=lambda one: one["arrival_ns"])
        return cls(Path(path).stem, tuple(StreamedRequest(number, **one) for number, one in enumerate(found)))

    def padded(self) -> Self:
        """The same requests, each with a prompt as long as the longest."""
        longest = max(one.prompt_tokens for one in self.requests)
        return replace(self, requests=tuple(replace(one, prompt_tokens=longest) for one in self.requests))

    def workload(self, *, padded: bool = False) -> Workload:
        """The requests as a batch's: with their prompts, and the most that any may generate."""
        most = max(one.most_tokens for one in self.requests)
        text = f"{len(self.requests)} requests"
        prompts = tuple(one.prompt_tokens for one in self.requests)
        return Workload(self.name, prompts, most, padded, text, "given by the caller")


def _generates(line: Mapping[str, Any], where: str) -> bool:
    """Whether a line says how many tokens a request had, and not how many it might have had."""
    if "generated_tokens" not in line or "max_tokens" in line:
        return False
    return bool(check_count(f"{where}: generated_tokens", line["generated_tokens"]))


def _request(line: Mapping[str, Any], where: str, gen_len: int) -> dict[str, Any]:
    """The numbers of one line."""
    prompt, _ = request_length(line, where)
    most = check_count(f"{where}: max_tokens", line.get("max_tokens", gen_len))
    generated = check_count(f"{where}: generated_tokens", line.get("generated_tokens", most))
    if generated > most:
        raise InputError(f"{where}: generated_tokens: {generated} is more than max_tokens, {most}; give at most these")
    numbers = {"prompt_tokens": prompt, "most_tokens": most, "generated_tokens": generated}
    return {**numbers, "arrival_ns": arrival_ns(line.get("arrival_s", 0.0), where)}
