"""What the fields of a request ask for: each is honoured, of no consequence, or refused by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.generation.asked import SEEDS
from traces.errors import InputError, check_count, check_range, nearest
from traces.files import read_toml

DECIDED = read_toml(Path(__file__).with_name("fields.toml"))
KNOWN = [*DECIDED["honoured"], *DECIDED["of_no_consequence"], *DECIDED["only"]]

MOST_CHOICES = 128
MOST_LIKELIEST = 20

AS_THE_LIBRARY_CALLS_THEM = ("top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class FieldsAsked:
    """What a request asks for beside its prompt; `options` are arguments of `generate()`."""

    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    choices: int = 1
    top_logprobs: int | None = None

    @property
    def stops(self) -> list[str]:
        """Texts before which the answer ends."""
        return list(self.options.get("stop_strings", ()))

    @property
    def prompt_logprobs(self) -> None:
        """No field of a line asks for them."""
        return None

    @property
    def draws(self) -> bool:
        """Whether it asks to draw tokens itself."""
        return bool(self.options.get("do_sample"))


def fields_asked(given: Mapping[str, Any], *, chat: bool) -> FieldsAsked:
    """What fields ask for; `chat` ones say of logprobs whether, and apart how many. Raises InputError by name."""
    for name, value in given.items():
        _check_decided(name, value)
    given = {name: value for name, value in given.items() if value is not None}
    return FieldsAsked(
        _limit(given),
        _options(given),
        _seed(given),
        check_range_of_count("n", given.get("n", 1), 1, MOST_CHOICES),
        _top_logprobs(given, chat=chat),
    )


def check_near_miss(name: str) -> None:
    """Refuses a name that is nearly that of a field."""
    if near := nearest(name, KNOWN, cutoff=0.85):
        raise InputError(f"{name}: not known{near}")


def _check_decided(name: str, value: Any) -> None:
    if name not in KNOWN:
        raise InputError(f"{name}: not known, so it cannot be honoured{nearest(name, KNOWN)}")
    only = DECIDED["only"].get(name)
    if only is None or value is None or any(_same(value, one) for one in only["values"]):
        return
    allowed = " or ".join(map(_as_json, only["values"]))
    told = f"give {allowed}, or leave it out" if allowed else "leave it out"
    raise InputError(f"{name}: asks for {only['asks_for']}, which is not supported; {told}")


def _same(value: Any, other: Any) -> bool:
    """Whether two JSON values are the same; true is no number."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _as_json(value: Any) -> str:
    return json.dumps(value)


def _limit(given: Mapping[str, Any]) -> int | None:
    limits = {name: given[name] for name in ("max_tokens", "max_completion_tokens") if name in given}
    for name, value in limits.items():
        check_count(name, value)
    if len(set(limits.values())) > 1:
        raise InputError(f"max_tokens {limits['max_tokens']} and max_completion_tokens disagree: leave one of them out")
    return next(iter(limits.values()), None)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: given[name] for name in AS_THE_LIBRARY_CALLS_THEM if name in given}
    if "temperature" in given:
        temperature = check_range("temperature", given["temperature"], 0, 1e6)
        options |= {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    elif "top_p" in given and check_range("top_p", given["top_p"], 0, 1) < 1:
        options["do_sample"] = True
    if stop := given.get("stop"):
        options["stop_strings"] = _stops(stop)
    if bias := given.get("logit_bias"):
        options["sequence_bias"] = _biases(bias)
    return options


def _seed(given: Mapping[str, Any]) -> int | None:
    return None if "seed" not in given else check_range_of_count("seed", given["seed"], *SEEDS)


def _stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise InputError("stop: it must be a text or a list of texts, none of them empty")
    return stops


def _biases(bias: Any) -> list[list[Any]]:
    """As the library takes them: [[token], bias] each."""
    if not isinstance(bias, dict) or not all(str(token).isdecimal() for token in bias):
        raise InputError("logit_bias: it must be an object of token ids and numbers from -100 to 100")
    return [
        [[int(token)], float(check_range(f"logit_bias: {token}", value, -100, 100))] for token, value in bias.items()
    ]


def _top_logprobs(given: Mapping[str, Any], *, chat: bool) -> int | None:
    asked, most = given.get("logprobs", False), given.get("top_logprobs")
    if isinstance(asked, bool):
        if most is not None and not asked:
            raise InputError("top_logprobs: it needs logprobs, which are not asked for: give logprobs true")
        return check_range_of_count("top_logprobs", most or 0, 0, MOST_LIKELIEST) if asked else None
    if chat:
        raise InputError(f"logprobs: {str(asked)[:40]} is not allowed; give true or false, and top_logprobs a number")
    return check_range_of_count("logprobs", asked, 0, MOST_LIKELIEST)


def check_range_of_count(name: str, value: Any, least: int, most: int) -> int:
    """Refuses what is no whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name}: {str(value)[:40]} is not allowed; give a whole number from {least} to {most}")
    return value
