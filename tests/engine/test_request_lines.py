"""What lines of requests ask for: every field of the OpenAI batch format is honoured, harmless or refused by name."""

import json

import pytest

from engine.generation.files.fields import KNOWN
from engine.generation.files.requests import DEEPEST, read_requests
from traces.errors import InputError

CHAT = """audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages
metadata modalities model moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop
store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options"""
COMPLETION = """best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt seed stop
stream stream_options suffix temperature top_p user"""
"""Of CompletionCreateParams in openai 3.57, for chats and for completions."""

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def read(tmp_path):
    def of(*lines, names=()):
        content = b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)
        (tmp_path / "in.jsonl").write_bytes(content)
        return read_requests(tmp_path / "in.jsonl", names)

    return of


def chat(custom_id="a", **body):
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return {**line, "body": {"model": "m", "messages": HI, **body}}


def test_every_field_of_the_openai_package_is_decided():
    assert {*CHAT.split(), *COMPLETION.split()} - set(KNOWN) == set()


HARMLESS = {
    "temperature": 0, "top_p": 1, "n": 1, "user": "me", "metadata": {"a": "b"}, "response_format": {"type": "text"},
    "frequency_penalty": 0, "presence_penalty": 0.0, "stream": False, "store": False, "service_tier": "auto",
    "tools": [], "tool_choice": "none", "modalities": ["text"], "logit_bias": {}, "stop": [], "seed": None,
    "logprobs": False, "max_tokens": None, "safety_identifier": "x", "parallel_tool_calls": True, "audio": None,
}  # fmt: skip


def test_harmless_values_are_no_reason_to_refuse(read):
    found = read(*(chat(name, **{name: value}) for name, value in HARMLESS.items()), chat("all", **HARMLESS))
    assert [one.error for one in found] == [""] * len(found)
    assert {one.asked.draws for one in found} == {False}
    assert [one.error for one in read(*({"prompt": "a", name: value} for name, value in HARMLESS.items()))] == [
        ""
    ] * len(HARMLESS)


REFUSED = {
    "frequency_penalty": 0.5, "presence_penalty": True, "stream": True, "store": True, "service_tier": "flex",
    "tools": [{}], "tool_choice": "required", "functions": [{}], "function_call": {"name": "f"}, "audio": {},
    "modalities": ["audio"], "response_format": {"type": "json_object"}, "verbosity": "high", "prediction": {},
    "reasoning_effort": "high", "web_search_options": {}, "moderation": {}, "stream_options": {"include_usage": True},
    "max_tokens": True, "max_completion_tokens": 0, "temperature": -0.1, "top_p": 1.1, "n": 0, "seed": 1.5,
    "logprobs": "yes", "stop": [""], "logit_bias": {"a": 1}, "top_logprobs": 2, "temprature": 1, "tool": 1,
    "best_of": True,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_honoured_is_refused_by_name_for_that_line_alone(read, name):
    good, bad, plain = read(chat("a"), chat("b", **{name: REFUSED[name]}), {"prompt": "a", "note": "mine"})
    assert good.error == plain.error == ""
    assert bad.error.startswith(f"line 2: {name}:")
    if name != "tool":  # a field of its own in a plain line
        assert read({"prompt": "a", name: REFUSED[name]})[0].error.startswith(f"line 1: {name}:")


def test_what_is_asked_for(read):
    asked = read(
        chat("a", temperature=0.5, top_p=0.9, seed=3, stop="x", n=2, logprobs=True, top_logprobs=4, max_tokens=5),
        {"prompt": "a", "max_completion_tokens": 7, "stop": ["x", "y"], "logprobs": 2, "top_k": 3, "temperature": 0},
        chat("b", logit_bias={"5": -100}, top_p=0.5),
    )
    first, second, third = [one.asked for one in asked]
    sampled = {"top_p": 0.9, "do_sample": True, "temperature": 0.5, "stop_strings": ["x"]}
    assert (first.max_tokens, first.options, first.seed, first.choices, first.top_logprobs) == (5, sampled, 3, 2, 4)
    greedy = {"top_k": 3, "do_sample": False, "stop_strings": ["x", "y"]}
    assert (second.max_tokens, second.options, second.seed, second.top_logprobs) == (7, greedy, None, 2)
    assert third.options == {"top_p": 0.5, "do_sample": True, "sequence_bias": [[[5], -100.0]]}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({**chat(), "method": "GET"}, "method: 'GET'"),
        ({**chat(), "url": "/v1/embeddings"}, "url: '/v1/embeddings' is not supported for messages"),
        ({**chat(), "custom_id": 5}, "custom_id: a int"),
        ({**chat(), "extra": 1}, "extra: not known"),
        ({"custom_id": "a", "body": {"input": "x"}}, "needs 'custom_id' and 'body'"),
        (chat(model=5), "model: a int"),
        (chat(messages=[]), "messages"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), "'image_url'"),
        (chat(messages=[{"role": "robot", "content": "x"}]), "role: 'robot' is not allowed"),
        (chat(messages=[{"role": "assistant", "tool_calls": [{}]}]), "tool_calls: not supported"),
        (chat(max_tokens=3, max_completion_tokens=4), "disagree"),
        ({"prompt": "a", "prompt_token_ids": [3]}, "two prompts"),
        ({"prompt": "a", "text": "mine"}, "text: its result has a field of that name"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
        (b'{"prompt": "\\ud83d"}', "half a character"),
        (b'{"prompt": "\xed\xa0\xbd"}', "is not JSON"),
        (b'{"prompt": NaN}', "NaN is no number of JSON"),
        (b'{"prompt": "a", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}", f"more than {DEEPEST}"),
        (b'{"prompt": "a", "x": ' + b"[" * 150 + b"]" * 150 + b"}", f"more than {DEEPEST}"),
    ],
)  # fmt: skip
def test_mistakes_are_that_lines_alone(read, line, told):
    good, bad, other = read({"prompt": "a"}, line, {"prompt": "b"})
    assert good.error == other.error == ""
    assert told in bad.error
    assert bad.error.startswith("line 2")
    assert "\n" not in bad.error


def test_parts_of_text_are_one_text(read):
    from engine.generation.files.chats import as_template_takes_them

    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    (found,) = read(chat(messages=[{"role": "user", "content": parts}]))
    assert not found.error
    assert as_template_takes_them(found.given["body"]["messages"]) == [{"role": "user", "content": "Hi there"}]


def test_only_a_line_feed_ends_a_line_and_a_mark_of_byte_order_is_skipped(read, tmp_path):
    text = "one\u2028two\x85three\x0bfour"
    (tmp_path / "in.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"prompt": text}, ensure_ascii=False).encode() + b'\r\n\n{"prompt": "last"}'
    )
    first, last = read_requests(tmp_path / "in.jsonl")
    assert (first.given["prompt"], first.error) == (text, "")
    assert (last.given["prompt"], last.line) == ("last", 3)


def test_lines_are_for_one_model_whatever_they_call_it(read):
    one, two, three = read(chat("a", model="x"), chat("b", model="x"), chat("c", model="y"))
    assert one.error == two.error == ""
    assert "model: 'y' is not the one that is run, 'x'" in three.error
    one, two = read(chat("a", model="x"), chat("b", model="mine"), names=("folder/mine", "mine"))
    assert "model: 'x' is not the one that is run, 'mine'" in one.error
    assert not two.error


def test_an_id_is_given_once(read):
    first, second = read(chat("a"), chat("a"))
    assert not first.error
    assert "custom_id: line 1 has the same" in second.error


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_a_file_without_requests(tmp_path, content):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="holds no request"):
        read_requests(tmp_path / "in.jsonl")
