"""What a trace says of a stream: its rules, its requests, and what each step carried, simulated or measured alike."""

from dataclasses import dataclass
from typing import Any

import msgspec

from sim.admission import AdmissionRules, Composition, StreamedRequest
from sim.simulation.stream.results import RequestTimes
from traces.trace import Counter

RECORD = "stream"
"""Where the metadata of a trace have it."""

REQUESTS = "stream (requests)"
"""The counter of who is in: `decoding`, `in prompts` and `waiting`, and how many `places` there are."""

NOT_YET = -1
"""The time of what has not happened in the steps that are known."""


@dataclass(frozen=True, slots=True)
class ServedStep:
    """A step as it began: what it carries, and when admission decided so, in nanoseconds from the start."""

    composition: Composition
    begun_ns: int
    num_waiting: int
    """Requests that had come and did not enter."""
    waited_ns: int = 0
    """Before that, how long nobody was there."""

    def counter(self, rules: AdmissionRules) -> Counter:
        """Who is in."""
        counts = {
            "decoding": self.composition.num_decoding,
            "in prompts": sum(map(len, self.composition.prompts)),
            "waiting": self.num_waiting,
            "places": rules.most_running,
        }
        return Counter(REQUESTS, self.begun_ns, counts)


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """A request of a stream: what was known of it, and what became of it."""

    request: StreamedRequest
    """It generates as many tokens as it had in the end."""
    first_token_ns: int = NOT_YET
    end_ns: int = NOT_YET
    error: str = ""
    """Why it did not come to its end, if it did not."""

    @property
    def times(self) -> RequestTimes | None:
        """None unless it came to its end."""
        one = self.request
        if self.end_ns == NOT_YET or self.error:
            return None
        return RequestTimes(one.id, one.arrival_ns, self.first_token_ns, self.end_ns, one.generated_tokens)


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """A stream as it was served, or the first steps of one."""

    rules: AdmissionRules
    requests: tuple[ServedRequest, ...]
    steps: tuple[ServedStep, ...]

    def to_metadata(self) -> dict[str, Any]:
        """As JSON values under the name that traces have them by: tuples as lists, in the order of their fields."""
        return {RECORD: msgspec.json.decode(msgspec.json.encode(self))}
