"""Requests as lines of JSON: one prompt a line, or the OpenAI batch format.

A line that cannot be run says why, and the others run. Only a line feed ends a line, and a byte order mark before the
first one is skipped.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from engine.generation.asked import check_fits, prompt_ids
from engine.generation.files.chats import as_template_takes_them
from engine.generation.files.fields import DECIDED, FieldsAsked, check_near_miss, fields_asked
from traces.errors import InputError, nearest

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

DEEPEST = 100
"""So many objects and lists may stand within each other in a line."""

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
BATCH_FIELDS = ("custom_id", "method", "url", "body")
"""What a line of the OpenAI batch format has."""

OF_RESULTS = ("text", "token_ids", "finished", "choices", "error", "made_by", "line")
"""What a line of results has beside what its request had."""


@dataclass(frozen=True, slots=True)
class Request:
    """One input line: what it asks for and its token ids, or the reason why there are none. `line` counts from 1."""

    line: int
    given: Mapping[str, Any]
    ids: list[int] | None = None
    error: str = ""
    asked: FieldsAsked = FieldsAsked()  # noqa: RUF009  # it is frozen

    @property
    def is_openai(self) -> bool:
        """Whether it is a line of the OpenAI batch format."""
        return any(name in self.given for name in ("body", "url", "method"))

    @property
    def is_chat(self) -> bool:
        """Of such a line, whether it has messages, not a prompt."""
        return "messages" in self._fields or "prompt" not in self._fields

    @property
    def model(self) -> str | None:
        """The model that it names, if it does."""
        return self._fields.get("model")

    @property
    def _fields(self) -> Mapping[str, Any]:
        body = self.given.get("body") if self.is_openai else self.given
        return body if isinstance(body, Mapping) else {}

    def refused(self, error: object) -> "Request":
        """The same, which cannot be run."""
        return replace(self, ids=None, error=f"line {self.line}: {error}")

    def encoded(self, tokenizer: PreTrainedTokenizerBase | None) -> "Request":
        """The same with its token ids, or with why it has none."""
        if self.error:
            return self
        try:
            if self.asked.stops and tokenizer is None:
                raise InputError("stop: it needs a tokenizer, which this model has not: leave it out")
            return replace(self, ids=_ids(self._fields, self.is_openai and self.is_chat, tokenizer))
        except InputError as error:
            return self.refused(error)

    def fitting(self, max_new_tokens: int, model_config: Any) -> "Request":
        """The same if it fits the positions and the vocabulary of a model, or with why it does not."""
        if self.ids is None:
            return self
        try:
            check_fits(self.ids, "the prompt", self.asked.max_tokens or max_new_tokens, model_config)
            biased = [tokens[0] for tokens, _ in self.asked.options.get("sequence_bias", ())]
            if biased:
                check_fits(biased, "logit_bias", 0, model_config)
        except InputError as error:
            return self.refused(error)
        return self


def read_requests(path: Path, own_names: Sequence[str] = ()) -> list[Request]:
    """All requests of a file, blank lines left out, not encoded yet; `own_names` are what the model may be called.

    Raises InputError if the file cannot be read or holds none.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise InputError(f"input {path}: cannot be read: {told}") from None
    lines = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    requests = [_request(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise InputError(f"input {path}: holds no request; give one JSON object a line")
    return _of_one_model(_each_once(requests), own_names)


def _request(number: int, line: bytes) -> Request:
    try:
        given = _json(line)
    except ValueError as error:
        return Request(number, {}, error=f"line {number} is not JSON: {error}")
    if not isinstance(given, dict):
        return Request(number, {}, error=f"line {number} is no JSON object but a {type(given).__name__}")
    request = Request(number, given)
    try:
        return replace(request, asked=_batch_asked(request) if request.is_openai else _plain_asked(given))
    except InputError as error:
        unnamed = request.is_openai and not isinstance(given.get("custom_id", ""), str)
        kept = {name: value for name, value in given.items() if name != "custom_id"} if unnamed else given
        return replace(request, given=kept).refused(error)


def _json(line: bytes) -> Any:
    """The value of a line. Raises ValueError for one that is no JSON text, or that could not be written again."""
    text = line.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} objects and lists within each other") from None
    _check_depth(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"\\u{ord(text[error.start]):04x} is half a character: give both halves") from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is given twice")
    return dict(pairs)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: Any) -> None:
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} objects and lists within each other")
        if isinstance(one, dict | list):
            left += [(part, depth + 1) for part in (one.values() if isinstance(one, dict) else one)]


def _plain_asked(given: Mapping[str, Any]) -> FieldsAsked:
    """What a prompt line asks for: it has the fields of a request, and others of its own, which the result repeats."""
    known = [*DECIDED["honoured"], *DECIDED["of_no_consequence"], *DECIDED["only"]]
    if not any(name in given for name in ("prompt", "prompt_token_ids")):
        raise InputError("no prompt found; give 'prompt', 'prompt_token_ids', or 'custom_id' with 'body.messages'")
    if "prompt" in given and "prompt_token_ids" in given:
        raise InputError("prompt and prompt_token_ids are two prompts: leave one of them out")
    if "messages" in given:
        raise InputError("messages are for the OpenAI batch format: give 'custom_id' and 'body' with them, or a prompt")
    for name in given:
        if name in OF_RESULTS:
            raise InputError(f"{name}: its result has a field of that name: call it something else")
        if name not in known:
            check_near_miss(name)
    return fields_asked({name: given[name] for name in given if name in known}, chat=False)


def _batch_asked(request: Request) -> FieldsAsked:
    given = request.given
    unknown = [name for name in given if name not in BATCH_FIELDS]
    if unknown:
        near = nearest(unknown[0], BATCH_FIELDS)
        raise InputError(f"{unknown[0]}: not known in a line of the OpenAI batch format{near}")
    body = given.get("body")
    if not isinstance(body, dict) or "custom_id" not in given or not {"messages", "prompt"} & body.keys():
        raise InputError("an OpenAI batch line needs 'custom_id' and 'body' with a list of 'messages' (or a 'prompt')")
    if not isinstance(given["custom_id"], str) or not given["custom_id"]:
        kind = type(given["custom_id"]).__name__
        raise InputError(f"custom_id: a {kind} is not allowed; give a text that is not empty")
    if given.get("method", "POST") != "POST":
        raise InputError(f"method: {str(given['method'])[:40]!r} is not supported; give POST")
    usual = CHAT if request.is_chat else COMPLETION
    if given.get("url", usual) != usual:
        other = "messages" if request.is_chat else "a prompt"
        raise InputError(f"url: {str(given['url'])[:80]!r} is not supported for {other}; give {usual}")
    if "messages" in body and "prompt" in body:
        raise InputError("messages and prompt are two prompts: leave one of them out")
    if request.is_chat:
        as_template_takes_them(body["messages"])
    return fields_asked(body, chat=request.is_chat)


def _each_once(requests: Sequence[Request]) -> list[Request]:
    """Refuses all lines of the batch format but the first with an id."""
    first: dict[str, int] = {}
    found = []
    for one in requests:
        known = first.setdefault(one.given["custom_id"], one.line) if one.is_openai and "custom_id" in one.given else 0
        twice = known not in (0, one.line) and not one.error
        found.append(one.refused(f"custom_id: line {known} has the same: give each its own") if twice else one)
    return found


def _of_one_model(requests: Sequence[Request], own_names: Sequence[str]) -> list[Request]:
    """Refuses lines for another model than the one that is run, by whatever name the others call it."""
    named = Counter(one.model for one in requests if isinstance(one.model, str))
    meant = {name for name in named if name in own_names} or {name for name, _ in named.most_common(1)}
    return [_for_model(one, sorted(meant)) for one in requests]


def _for_model(request: Request, meant: Sequence[str]) -> Request:
    if request.error or request.model is None or request.model in meant:
        return request
    if not isinstance(request.model, str):
        return request.refused(f"model: a {type(request.model).__name__} is not allowed; give a text")
    return request.refused(f"model: {request.model[:80]!r} is not the one that is run, {meant[0]!r}")


def _ids(fields: Mapping[str, Any], chat: bool, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if chat:
        return _chat_ids(fields["messages"], tokenizer)
    if "prompt_token_ids" in fields and not isinstance(fields["prompt_token_ids"], list):
        raise InputError(f"prompt_token_ids is a {type(fields['prompt_token_ids']).__name__}; it must be a list")
    prompt = fields.get("prompt_token_ids", fields.get("prompt"))
    if not isinstance(prompt, str | list):
        raise InputError(f"prompt is a {type(prompt).__name__}; it must be a str, or a list of token ids")
    return prompt_ids(prompt[0] if _is_one_text(prompt) else prompt, 0, tokenizer)


def _is_one_text(prompt: Any) -> bool:
    return isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str)


def _chat_ids(messages: Any, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    plain = as_template_takes_them(messages)
    if tokenizer is None or not tokenizer.chat_template:
        raise InputError("messages need a tokenizer with a chat template, which this model has not")
    try:
        encoded: Any = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=True)
    except Exception as error:  # templates are programs and raise what they like
        told = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise InputError(f"the chat template refuses these messages: {told}") from None
    ids = list(encoded["input_ids"])
    if not ids:
        raise InputError("the chat template makes nothing of these messages: give some text")
    return ids
