"""What is asked: how long each prompt is, how many tokens each request generates, of which model on which machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from sim.problem.machine import Basis, Hardware
from sim.problem.model import Model
from sim.problem.policy import MOST_REQUESTS
from sim.problem.presets import WORKLOADS
from sim.problem.routing import UNIFORM, Routing
from traces.errors import InputError, check_choice, check_count, check_flag, check_keys, check_text, error_prefix, shown
from traces.files import read_objects, read_toml

TOKENS_PER_WORD = 1.5698
"""Tokens per word (between white space): takes MT-bench's questions, 49.05 words on average, to their published 77."""

DEFAULT_GEN_LEN = 128
"""Tokens generated per request where a file of requests cannot say: MoE-Lightning's usual setting."""

MOST_PROMPT_TOKENS = 10**8
"""The longest contexts of models have ten million."""

MOST_GENERATED_TOKENS = 10**6
"""Of a request: models say some tens of thousands."""

_REQUIRED = ("prompt_tokens", "gen_len")
_ALLOWED = ("name", "description", "source", "basis", *_REQUIRED, "padded", "sampled", "in_order")
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
    sampled: bool = False
    """Whether tokens are drawn, or scores changed before the highest is taken: what works on scores takes memory."""
    in_order: bool = False
    """Whether requests fill micro-batches as they come, each padded to the longest prompt of its own, as our engine
    does, instead of the balance of Algorithm 2."""

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise InputError("prompt_tokens: empty; a workload has at least one request")
        for index, tokens in enumerate(self.prompt_tokens):
            check_count(f"prompt_tokens[{index}]", tokens, most=MOST_PROMPT_TOKENS)
        check_count("gen_len", self.gen_len, most=MOST_GENERATED_TOKENS)

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt, to which all are padded when `padded`."""
        return max(self.prompt_tokens)

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean effective length of the distinct questions: the padded length when `padded`."""
        return float(self.max_prompt_tokens) if self.padded else sum(self.prompt_tokens) / len(self.prompt_tokens)

    def requests(self, num_requests: int) -> tuple[int, ...]:
        """Effective prompt lengths of the first `num_requests` requests; the questions repeat as often as needed."""
        check_count("batch-size", num_requests, most=MOST_REQUESTS)
        if self.padded:
            return (self.max_prompt_tokens,) * num_requests
        copies, remainder = divmod(num_requests, len(self.prompt_tokens))
        return self.prompt_tokens * copies + self.prompt_tokens[:remainder]

    def with_(self, *, gen_len: int | None = None, padded: bool | None = None, sampled: bool | None = None) -> Self:
        """Return this workload with another generation length, padding or choice of tokens; None keeps what it has."""
        given: dict[str, Any] = {"gen_len": gen_len, "padded": padded, "sampled": sampled}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @classmethod
    def fixed(cls, prompt_len: int, gen_len: int) -> Self:
        """Requests that all have prompts of `prompt_len` tokens."""
        check_count("prompt-len", prompt_len, most=MOST_PROMPT_TOKENS)
        text = f"every prompt has {prompt_len} tokens"
        return cls(f"prompt-len-{prompt_len}", (prompt_len,), gen_len, description=text, source="given by the caller")

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names that `load` knows without a file."""
        return WORKLOADS.names()

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Load a preset by name, a TOML file with the fields of a Workload, or a JSONL file of requests.

        A line of a JSONL file is one request: {"prompt_tokens": 123}, {"prompt_token_ids": [1, ...]} or
        {"prompt": "text"} of TOKENS_PER_WORD tokens a word. They generate DEFAULT_GEN_LEN tokens each until `with_`
        says otherwise. Raises InputError for an unknown name and for a bad file, with the field or the line.
        """
        preset = WORKLOADS.path(str(name_or_path))
        if preset is not None:
            return cls._from_table(read_toml(preset), preset.stem)
        path = Path(name_or_path)
        match path.suffix.lower():
            case ".jsonl":
                return cls._from_requests(path)
            case ".toml":
                table = read_toml(path)
                with error_prefix(f"{path}: "):
                    return cls._from_table(table, path.stem, f"the user's file {path.name}")
        raise WORKLOADS.unknown(str(name_or_path))

    @classmethod
    def _from_table(cls, table: Mapping[str, Any], name: str, source: str = "") -> Self:
        check_keys(table, _ALLOWED, _REQUIRED)
        fields = {"name": name, "source": source, **table}
        for key in ("name", "description", "source"):
            check_text(key, fields.get(key, ""))
        if not isinstance(fields["prompt_tokens"], list):
            raise InputError(
                f"prompt_tokens: {shown(fields['prompt_tokens'])} is not a list of lengths such as [77, 418]"
            )
        for key in ("padded", "sampled", "in_order"):
            check_flag(key, fields.get(key, False))
        basis = check_choice("basis", fields.get("basis", Basis.ASSUMED), Basis)
        return cls(**{**fields, "prompt_tokens": tuple(fields["prompt_tokens"]), "basis": Basis(basis)})

    @classmethod
    def _from_requests(cls, path: Path) -> Self:
        requests = [request_length(request, where) for where, request in read_objects(path)]
        if not requests:
            raise InputError(f'{path}: is empty; give one request a line, such as {{"prompt_tokens": 77}}')
        tokens, kinds = zip(*requests, strict=True)
        counted = kinds.count("prompt")
        source = f"the user's file {path.name}: {len(tokens) - counted} of {len(tokens)} prompts with their token count"
        if counted:
            source += f", {counted} as text, counted as words x {TOKENS_PER_WORD} (surrogate)"
        basis = Basis.FITTED if counted else Basis.MEASURED
        text = f"{len(tokens)} requests of {path.name}"
        return cls(path.stem, tokens, DEFAULT_GEN_LEN, description=text, source=source, basis=basis)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked: a model, on a machine, for a workload whose tokens choose experts as `routing` says.

    Raises InputError for a routing that was measured on a model of another form.
    """

    model: Model
    hardware: Hardware
    workload: Workload
    routing: Routing = field(default_factory=Routing)

    def __post_init__(self) -> None:
        self.routing.check_fits(self.model)

    @classmethod
    def of(
        cls,
        model: str | Path | Model,
        hardware: str | Path | Hardware,
        workload: str | Path | Workload = "mtbench",
        *,
        prompt_len: int | None = None,
        gen_len: int | None = None,
        padded: bool | None = None,
        sampled: bool | None = None,
        routing: str | Routing = UNIFORM,
    ) -> Self:
        """A problem of nouns, names or paths: `Problem.of("mixtral-8x7b", "gcp-t4", gen_len=64)`. Raises InputError.

        With `prompt_len` every prompt is so long, instead of a workload. Prompts are padded to the longest as `padded`
        says, or else as a Workload given does; those of a workload that is named are. `sampled` is as in Workload, and
        `routing` is what `Routing.parse` reads.
        """
        if not isinstance(model, Model):
            model = Model.load(model)
        if not isinstance(hardware, Hardware):
            hardware = Hardware.load(hardware)
        if prompt_len is not None:
            workload = Workload.fixed(prompt_len, DEFAULT_GEN_LEN)
        if not isinstance(workload, Workload):
            workload, padded = Workload.load(workload), padded is not False
        if not isinstance(routing, Routing):
            routing = Routing.parse(routing)
        return cls(model, hardware, workload.with_(gen_len=gen_len, padded=padded, sampled=sampled), routing)


def request_length(request: Mapping[str, Any], where: str) -> tuple[int, str]:
    """(prompt length, key that gave it) of a request: one line of a JSONL file, found `where`. Raises InputError."""
    key = next((key for key in _REQUEST_KEYS if key in request), None)
    if key is None:
        forms = '{"prompt_tokens": 77}, {"prompt_token_ids": [1, ...]} or {"prompt": "text"}'
        raise InputError(f"{where}: not a request; allowed: {forms}")
    value, name = request[key], f"{where}: {key}"
    if key == "prompt":
        value = round(len(check_text(name, value).split()) * TOKENS_PER_WORD)
    elif key == "prompt_token_ids":
        if not isinstance(value, list):
            raise InputError(f"{name}: {shown(value)} is not a list of token ids")
        value = len(value)
    return check_count(name, value, most=MOST_PROMPT_TOKENS), key
