"""Results as lines of JSON in the format of their requests, each with what made it.

Where they come in another order than those of the input, each has its number.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.generation.files.made_by import MadeBy, read_maker
from engine.generation.files.requests import Request
from engine.generation.rows import TokenLogprobs

OPENAI_ID = "batch_req_"
"""What the id of an output line begins with, before the number of its input line."""

TextOf = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one choice of a request generated. `ended`: the model or a stop string ended it, not the token limit."""

    token_ids: list[int]
    text: str | None
    ended: bool
    logprobs: list[TokenLogprobs] | None = None

    @classmethod
    def of(
        cls,
        token_ids: list[int],
        ends: set[int],
        stops: Sequence[str],
        text_of: TextOf | None,
        logprobs: list[TokenLogprobs] | None = None,
    ) -> "Answer":
        """The text ends before the first of the strings that stop it."""
        ended = bool(token_ids) and token_ids[-1] in ends
        text = None if text_of is None else text_of(token_ids)
        found = [at for at in (text.find(stop) for stop in stops) if at >= 0] if text is not None else []
        return cls(token_ids, text[: min(found)] if text and found else text, ended or bool(found), logprobs)

    @property
    def finish_reason(self) -> str:
        return "stop" if self.ended else "length"


def output_line(
    request: Request,
    answers: Sequence[Answer],
    made_by: MadeBy,
    *,
    text_of: TextOf | None = None,
    numbered: bool = False,
) -> str:
    """The result of one request in the format of its input. `text_of` a token is for logarithms of probabilities."""
    if not request.is_openai:
        own = _given(request, numbered)
        made = [_plain(answer, text_of) for answer in answers]
        told = made[0] if len(made) == 1 else {"choices": made}
        return json.dumps({**own, **told, "made_by": made_by.to_dict()}, ensure_ascii=False) + "\n"
    of_prompt, made_tokens = len(request.ids or ()), sum(len(one.token_ids) for one in answers)
    choice_of = _chat_choice if request.is_chat else _completion_choice
    body = {
        "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{request.line}",
        "object": "chat.completion" if request.is_chat else "text_completion",
        "created": int(time.time()),
        "model": made_by.model,
        "choices": [choice_of(i, one, text_of) for i, one in enumerate(answers)],
        "usage": {
            "prompt_tokens": of_prompt,
            "completion_tokens": made_tokens,
            "total_tokens": of_prompt + made_tokens,
        },
        "system_fingerprint": made_by.fingerprint,
    }
    return _openai_line(request, {"status_code": 200, "request_id": f"req-{request.line}", "body": body}, None)


def error_line(request: Request, *, numbered: bool = False) -> str:
    """What stands in the output for a request that could not be run."""
    if request.is_openai:
        return _openai_line(request, None, {"code": "invalid_request", "message": request.error})
    return json.dumps({**_given(request, numbered), "error": request.error}, ensure_ascii=False) + "\n"


def beginning_of_line(request: Request) -> str:
    """What the line of a request begins with, whatever became of it."""
    if request.is_openai:
        return json.dumps(_names(request), ensure_ascii=False)[:-1]
    return json.dumps(dict(request.given), ensure_ascii=False)[:-1]


def line_of_output(result: Mapping[str, Any]) -> int:
    """The line of the input that a line of the output is of; 0 where it does not say."""
    if "response" in result:
        number = str(result.get("id")).removeprefix(OPENAI_ID)
        return int(number) if number.isdecimal() else 0
    line = result.get("line")
    return line if isinstance(line, int) else 0


def is_result(value: Mapping[str, Any]) -> bool:
    """Whether it is a line of results, not of requests."""
    plain = {"token_ids", "finished"} <= value.keys() or "choices" in value or isinstance(value.get("error"), str)
    return plain or {"id", "response", "error"} <= value.keys()


def is_failure(value: Mapping[str, Any]) -> bool:
    """Whether a line of results says why there is none."""
    return bool(value.get("error"))


def maker_of(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a line of results says of what made it; None where it says nothing."""
    if "response" not in value:
        return read_maker(value.get("made_by"))
    response = value["response"] if isinstance(value["response"], dict) else {}
    body = response.get("body")
    return read_maker(body.get("system_fingerprint")) if isinstance(body, dict) else None


def _given(request: Request, numbered: bool) -> dict[str, Any]:
    """What a line of the output repeats of its request."""
    return {**request.given, **({"line": request.line} if numbered else {})}


def _plain(answer: Answer, text_of: TextOf | None) -> dict[str, Any]:
    made = {"text": answer.text, "token_ids": answer.token_ids, "finished": answer.ended}
    if answer.logprobs is None:
        return made
    return {**made, "logprobs": [_token(one, text_of) for one in answer.logprobs]}


def _chat_choice(index: int, answer: Answer, text_of: TextOf | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": index, "message": message, "finish_reason": answer.finish_reason}
    if answer.logprobs is None:
        return choice
    return {**choice, "logprobs": {"content": [_token(one, text_of) for one in answer.logprobs], "refusal": None}}


def _completion_choice(index: int, answer: Answer, text_of: TextOf | None) -> dict[str, Any]:
    choice = {"index": index, "text": answer.text, "finish_reason": answer.finish_reason, "logprobs": None}
    if answer.logprobs is None:
        return choice
    tokens = [_name(one.token, text_of) for one in answer.logprobs]
    offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    likeliest = [{_name(token, text_of): at for token, at in one.likeliest} for one in answer.logprobs]
    told = {"tokens": tokens, "token_logprobs": [one.logprob for one in answer.logprobs]}
    return {**choice, "logprobs": {**told, "top_logprobs": likeliest, "text_offset": offsets}}


def _token(one: TokenLogprobs, text_of: TextOf | None) -> dict[str, Any]:
    likeliest = [_named(token, at, text_of) for token, at in one.likeliest]
    return {**_named(one.token, one.logprob, text_of), "top_logprobs": likeliest}


def _named(token: int, logprob: float, text_of: TextOf | None) -> dict[str, Any]:
    name = _name(token, text_of)
    return {"token": name, "logprob": logprob, "bytes": list(name.encode("utf-8"))}


def _name(token: int, text_of: TextOf | None) -> str:
    return f"token_id:{token}" if text_of is None else text_of([token])


def _openai_line(request: Request, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None) -> str:
    return json.dumps({**_names(request), "response": response, "error": error}, ensure_ascii=False) + "\n"


def _names(request: Request) -> dict[str, Any]:
    return {"id": f"{OPENAI_ID}{request.line}", "custom_id": request.given.get("custom_id", "")}
