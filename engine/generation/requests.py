"""Requests as lines of JSON, in and out: one prompt a line, or the OpenAI batch format.

Output lines have the format of the input lines. A line that cannot be run gets an output line that says why, and the
others run. Where they come in another order than those of the input, each has its number.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from engine.generation.prompts import prompt_ids
from traces.errors import InputError

BODY_FIELDS = ("messages", "model", "max_tokens", "max_completion_tokens", "n", "stream")
"""What the engine understands of an OpenAI request's body. Sampling is set for the whole run, not for one request."""

OPENAI_ID = "batch_req_"
"""What the id of an output line begins with, before the number of its input line."""


@dataclass(frozen=True, slots=True)
class Request:
    """One input line: its token ids, or the reason why there are none. `line` counts from 1."""

    line: int
    given: Mapping[str, Any]
    ids: list[int] | None = None
    error: str = ""
    max_tokens: int | None = None

    @property
    def is_openai(self) -> bool:
        return "custom_id" in self.given


def read_requests(path: Path, tokenizer: PreTrainedTokenizerBase | None) -> list[Request]:
    """All requests of a file, blank lines left out. Raises InputError if the file cannot be read or holds none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"input {path}: cannot be read: {error}") from None
    requests = [_request(number, line, tokenizer) for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise InputError(f"input {path}: holds no request; give one JSON object a line")
    return requests


def _request(number: int, line: str, tokenizer: PreTrainedTokenizerBase | None) -> Request:
    try:
        given = json.loads(line)
    except ValueError as error:
        return Request(number, {}, error=f"line {number} is not JSON: {error}")
    if not isinstance(given, dict):
        return Request(number, {}, error=f"line {number} is no JSON object but a {type(given).__name__}")
    try:
        ids, max_tokens = _ids(given, tokenizer)
    except InputError as error:
        return Request(number, given, error=f"line {number}: {error}")
    return Request(number, given, ids, max_tokens=max_tokens)


def _ids(given: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[int], int | None]:
    if "body" in given:
        return _chat_ids(given, tokenizer)
    for name, kind in (("prompt_token_ids", list), ("prompt", str)):
        if name in given:
            if not isinstance(given[name], kind):
                raise InputError(f"{name} is a {type(given[name]).__name__}; it must be a {kind.__name__}")
            return prompt_ids(given[name], 0, tokenizer), None
    raise InputError("no prompt found; give 'prompt', 'prompt_token_ids', or 'custom_id' with 'body.messages'")


def _chat_ids(given: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[int], int | None]:
    body = given["body"]
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or "custom_id" not in given:
        raise InputError("an OpenAI batch line needs 'custom_id' and 'body' with a list of 'messages'")
    unknown = [name for name in body if name not in BODY_FIELDS]
    if unknown or body.get("n", 1) != 1 or body.get("stream"):
        asked = ", ".join(unknown) or "n or stream"
        raise InputError(f"body asks for {asked}: set sampling for the whole run, on the command line")
    if tokenizer is None or not tokenizer.chat_template:
        raise InputError("messages need a tokenizer with a chat template, which this model has not")
    try:
        encoded: Any = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)
    except Exception as error:  # templates are programs and raise what they like
        raise InputError(f"the chat template refuses these messages: {error}") from None
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InputError(f"max_tokens {limit!r}: it must be a whole number of at least 1")
    return list(encoded["input_ids"]), limit


def output_line(
    request: Request, sequence: Sequence[int], text: str | None, ended: bool, model: str, *, numbered: bool = False
) -> str:
    """The result of one request in the format of its input. `ended`: the model ended it, not the token limit."""
    if not request.is_openai:
        result = {**_given(request, numbered), "text": text, "token_ids": list(sequence), "finished": ended}
        return json.dumps(result, ensure_ascii=False) + "\n"
    given, made = len(request.ids or ()), len(sequence)
    message = {"role": "assistant", "content": text}
    body = {
        "id": f"chatcmpl-{request.line}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop" if ended else "length"}],
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }
    return _openai_line(request, {"status_code": 200, "request_id": f"req-{request.line}", "body": body}, None)


def error_line(request: Request, *, numbered: bool = False) -> str:
    """What stands in the output for a request that could not be run."""
    if request.is_openai:
        return _openai_line(request, None, {"code": "invalid_request", "message": request.error})
    return json.dumps({**_given(request, numbered), "error": request.error}, ensure_ascii=False) + "\n"


def line_of_output(result: Mapping[str, Any]) -> int:
    """The line of the input that a line of the output is of; 0 where it does not say."""
    if "custom_id" in result:
        number = str(result.get("id")).removeprefix(OPENAI_ID)
        return int(number) if number.isdecimal() else 0
    line = result.get("line")
    return line if isinstance(line, int) else 0


def _given(request: Request, numbered: bool) -> dict[str, Any]:
    """What a line of the output repeats of its request."""
    return {**request.given, **({"line": request.line} if numbered else {})}


def _openai_line(request: Request, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None) -> str:
    line = {"id": f"{OPENAI_ID}{request.line}", "custom_id": request.given["custom_id"]}
    return json.dumps({**line, "response": response, "error": error}, ensure_ascii=False) + "\n"
