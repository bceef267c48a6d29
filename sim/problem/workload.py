"""What is asked of the model: how long each prompt is, and how many tokens each request generates."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from sim.problem.machine import Basis
from traces.errors import InputError, check_keys, nearest

TOKENS_PER_WORD = 1.5698
"""Tokens per word (between white space): takes MT-bench's questions, 49.05 words on average, to their published 77."""

DEFAULT_GEN_LEN = 128
"""Tokens generated per request where a file of requests cannot say: MoE-Lightning's usual setting."""

_PRESETS = Path(__file__).parents[1] / "presets" / "workloads"
_REQUIRED = ("prompt_tokens", "gen_len")
_ALLOWED = ("name", "description", "source", "basis", *_REQUIRED, "padded")
_REQUEST_KEYS = ("prompt_tokens", "prompt_token_ids", "prompt")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of known prompt length that all generate the same number of tokens.

    Raises InputError, naming the field, when a length is below 1 or there is none.
    """

    name: str
    prompt_tokens: tuple[int, ...]
    """Prompt length of each distinct question, in the order in which they are sent."""
    gen_len: int
    """Tokens generated per request: the first by prefill, one by each of the gen_len - 1 decode steps."""
    padded: bool = False
    """Whether every prompt is padded to the longest one, as most other systems do: "(p)" in MoE-Lightning."""
    description: str = ""
    source: str = ""
    basis: Basis = Basis.ASSUMED
    """How the prompt lengths are known; `source` says it in words."""

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise InputError("prompt_tokens: empty; a workload has at least one request")
        for index, tokens in enumerate(self.prompt_tokens):
            _check_count(tokens, f"prompt_tokens[{index}]", "a prompt has at least 1 token")
        _check_count(self.gen_len, "gen_len", "each request generates at least 1 token")

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt."""
        return max(self.prompt_tokens)

    @property
    def padded_prompt_tokens(self) -> int:
        """The length that every prompt is padded to when `padded`: that of the longest."""
        return self.max_prompt_tokens

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean effective length of the distinct questions: the padded length when `padded`."""
        return float(self.max_prompt_tokens) if self.padded else sum(self.prompt_tokens) / len(self.prompt_tokens)

    def requests(self, num_requests: int) -> tuple[int, ...]:
        """Effective prompt lengths of the first `num_requests` requests; the questions repeat as often as needed."""
        _check_count(num_requests, "batch-size", "a batch has at least 1 request")
        if self.padded:
            return (self.padded_prompt_tokens,) * num_requests
        copies, remainder = divmod(num_requests, len(self.prompt_tokens))
        return self.prompt_tokens * copies + self.prompt_tokens[:remainder]

    def with_(self, *, gen_len: int | None = None, padded: bool | None = None) -> Self:
        """Return this workload with another generation length or padding; None keeps what it has."""
        return replace(
            self,
            gen_len=self.gen_len if gen_len is None else gen_len,
            padded=self.padded if padded is None else padded,
        )

    @classmethod
    def fixed(cls, prompt_len: int, gen_len: int) -> Self:
        """Requests that all have prompts of `prompt_len` tokens."""
        _check_count(prompt_len, "prompt-len", "a prompt has at least 1 token")
        text = f"every prompt has {prompt_len} tokens"
        return cls(f"prompt-len-{prompt_len}", (prompt_len,), gen_len, description=text, source="given by the caller")

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names that `load` knows without a file."""
        return tuple(sorted(path.stem for path in _PRESETS.glob("*.toml")))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Load a preset by name, a TOML file with the fields of a Workload, or a JSONL file of requests.

        A line of a JSONL file is one request: {"prompt_tokens": 123}, {"prompt_token_ids": [1, ...]} or
        {"prompt": "text"}, the first of them that is there; text counts TOKENS_PER_WORD tokens a word.
        Such a file generates DEFAULT_GEN_LEN tokens a request until `with_` says otherwise.
        Raises InputError for an unknown name, with the nearest ones, and for a bad file, with the field or the line.
        """
        if str(name_or_path) in cls.presets():
            path = _PRESETS / f"{name_or_path}.toml"
            return cls._from_table(_parse_toml(_read(path)), path.stem)
        path = Path(name_or_path)
        read = {".toml": cls._from_toml, ".jsonl": cls._from_jsonl}.get(path.suffix.lower())
        if read is None:
            raise InputError(_unknown(str(name_or_path), path.is_file(), cls.presets()))
        try:
            return read(_read(path), path)
        except InputError as error:
            raise InputError(f"workload file {path}: {error}") from error

    @classmethod
    def _from_toml(cls, text: str, path: Path) -> Self:
        return cls._from_table(_parse_toml(text), path.stem, f"the user's file {path.name}")

    @classmethod
    def _from_table(cls, table: Mapping[str, Any], name: str, source: str = "") -> Self:
        check_keys(table, _ALLOWED, _REQUIRED)
        fields = {"name": name, "source": source, **table}
        for key in ("name", "description", "source"):
            if not isinstance(fields.get(key, ""), str):
                raise InputError(f"{key}: {fields[key]!r} is not text")
        if not isinstance(fields["prompt_tokens"], list):
            raise InputError(f"prompt_tokens: {fields['prompt_tokens']!r} is not a list of lengths such as [77, 418]")
        if not isinstance(fields.get("padded", False), bool):
            raise InputError(f"padded: {fields['padded']!r} is not true or false")
        basis = fields.get("basis", Basis.ASSUMED)
        if basis not in tuple(Basis):
            raise InputError(f"basis: unknown basis {basis!r}; allowed: {', '.join(Basis)}")
        return cls(**{**fields, "prompt_tokens": tuple(fields["prompt_tokens"]), "basis": Basis(basis)})

    @classmethod
    def _from_jsonl(cls, text: str, path: Path) -> Self:
        requests = [
            _request_tokens(line, f"line {number}")
            for number, line in enumerate(text.split("\n"), start=1)  # not splitlines(): JSON text may hold U+2028
            if line.strip()
        ]
        if not requests:
            raise InputError('empty; give one request a line, such as {"prompt_tokens": 77}')
        tokens, kinds = zip(*requests, strict=True)
        counted = kinds.count("prompt")
        source = f"the user's file {path.name}: {len(tokens) - counted} of {len(tokens)} prompts with their token count"
        if counted:
            source += f", {counted} as text, counted as words x {TOKENS_PER_WORD} (surrogate)"
        basis = Basis.FITTED if counted else Basis.MEASURED
        text = f"{len(tokens)} requests of {path.name}"
        return cls(path.stem, tokens, DEFAULT_GEN_LEN, description=text, source=source, basis=basis)


def _check_count(value: object, field: str, rule: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{field}: {value!r} is not allowed; {rule}, given as a whole number")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"not a UTF-8 text file (byte {error.start})") from error


def _parse_toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}") from error


def _unknown(name: str, is_file: bool, presets: tuple[str, ...]) -> str:
    if is_file:
        return f"workload file {name}: the name must end in .toml (one workload) or .jsonl (one request a line)"
    return (
        f"unknown workload {name!r}{nearest(name, presets)}; "
        f"allowed: {', '.join(presets)}, or the path of a .toml or .jsonl file"
    )


def _request_tokens(line: str, where: str) -> tuple[int, str]:
    """(prompt length, key that gave it) of one line of a JSONL file."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    key = next((key for key in _REQUEST_KEYS if isinstance(request, dict) and key in request), None)
    if key is None:
        forms = '{"prompt_tokens": 77}, {"prompt_token_ids": [1, ...]} or {"prompt": "text"}'
        raise InputError(f"{where}: not a request; allowed: {forms}")
    return _count_tokens(key, request[key], f"{where}: {key}"), key


def _count_tokens(key: str, value: object, field: str) -> int:
    """Prompt length of a request that gives `value` under `key`."""
    if key == "prompt":
        if not isinstance(value, str):
            raise InputError(f"{field}: {type(value).__name__} given; allowed: text")
        value = round(len(value.split()) * TOKENS_PER_WORD)
    elif key == "prompt_token_ids":
        if not isinstance(value, list):
            raise InputError(f"{field}: {type(value).__name__} given; allowed: a list of token ids")
        value = len(value)
    return _check_count(value, field, "a prompt has at least 1 token")
