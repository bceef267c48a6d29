"""Requests from workloads, distributions and files: reproducible, in order, with errors of one line."""

import json
from dataclasses import replace

import pytest

from sim.admission import Arrivals, Lengths, RequestStream, StreamedRequest, StreamOptions
from sim.problem import Problem, Workload
from traces.errors import InputError

WORKLOAD = Workload("two", (5, 9), 100)


def test_a_workload_repeats_its_questions():
    stream = RequestStream.of(WORKLOAD, 5)
    assert [one.prompt_tokens for one in stream.requests] == [5, 9, 5, 9, 5]
    assert {(one.most_tokens, one.generated_tokens, one.arrival_ns) for one in stream.requests} == {(100, 100, 0)}
    assert (stream.prompt_tokens, stream.generated_tokens) == (33, 500)


def test_lognormal_lengths_have_their_mean_and_end_at_the_limit():
    lengths = Lengths.parse("lognormal:40,0.5")
    stream = RequestStream.of(WORKLOAD, 4000, lengths=lengths)
    drawn = [one.generated_tokens for one in stream.requests]
    assert all(1 <= length <= one.most_tokens == 100 for length, one in zip(drawn, stream.requests, strict=True))
    assert sum(drawn) / len(drawn) == pytest.approx(40, rel=0.03)  # its standard error is 0.8 %
    assert max(drawn) == 100


def test_poisson_arrivals_have_their_rate_and_come_in_order():
    stream = RequestStream.of(WORKLOAD, 4000, arrivals=Arrivals.parse("poisson:2/s"))
    times = [one.arrival_ns for one in stream.requests]
    assert times == sorted(times)
    assert times[-1] / 1e9 == pytest.approx(2000, rel=0.05)  # its standard error is 1.6 %


def test_a_seed_decides_all_that_is_drawn():
    def drawn(seed, lengths="lognormal:40,1"):
        both = {"lengths": Lengths.parse(lengths), "arrivals": Arrivals.parse("poisson:1/s")}
        return RequestStream.of(WORKLOAD, 50, **both, seed=seed)

    assert drawn(1) == drawn(1) != drawn(2)
    constant = drawn(1, "constant")
    assert [one.arrival_ns for one in constant.requests] == [one.arrival_ns for one in drawn(1).requests]


def test_a_file_says_lengths_and_arrivals(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"prompt": "one two three", "max_tokens": 64, "arrival_s": 2}\n'
        '{"prompt_tokens": 7, "max_tokens": 9, "generated_tokens": 4, "arrival_s": 0.5}\n'
        '{"prompt_tokens": 8}\n'
    )
    assert RequestStream.read(path, gen_len=30).requests == (
        StreamedRequest(0, 8, 30, 30),
        StreamedRequest(1, 7, 9, 4, 500_000_000),
        StreamedRequest(2, 5, 64, 64, 2_000_000_000),
    )


def test_a_file_gives_arrivals_to_a_workload(tmp_path):
    path = tmp_path / "arrivals.jsonl"
    path.write_text('{"arrival_s": 3}\n{"arrival_s": 1}\n')
    arrivals = Arrivals.parse(str(path))
    assert [one.arrival_ns for one in RequestStream.of(WORKLOAD, 2, arrivals=arrivals).requests] == [10**9, 3 * 10**9]
    with pytest.raises(InputError, match="has 2 arrivals for 3 requests; ask for fewer"):
        RequestStream.of(WORKLOAD, 3, arrivals=arrivals)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poisson:2", "not a rate; give one a second, such as poisson:2/s"),
        ("poisson:x/s", "not a rate"),
        ("poisson:0/s", "not a rate"),
        ("soon", "unknown; give at-once, poisson:RATE/s"),
    ],
)
def test_arrivals_that_are_none(text, message):
    with pytest.raises(InputError, match=message):
        Arrivals.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lognorm:3,1", "did you mean lognormal"),
        ("lognormal:3", "unknown; give constant, lognormal:MEAN,SIGMA"),
        ("lognormal:0,1", "MEAN: 0.0 is not allowed"),
        ("lognormal:5,x", "SIGMA: nan is not allowed"),
    ],
)
def test_lengths_that_are_none(text, message):
    with pytest.raises(InputError, match=message):
        Lengths.parse(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt_tokens": 0}', "line 1: prompt_tokens: 0"),
        ('{"prompt_tokens": 3, "max_tokens": "many"}', "line 1: max_tokens: 'many'"),
        ('{"prompt_tokens": 3, "max_tokens": 3, "generated_tokens": 4}', "line 1: generated_tokens: 4 is more than"),
        ('{"prompt_tokens": 3, "arrival_s": -1}', "line 1: arrival_s: -1 is not allowed"),
    ],
)
def test_a_line_that_is_no_request(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        RequestStream.read(path)


def test_a_stream_is_in_order_and_not_empty():
    late, early = StreamedRequest(0, 1, 1, 1, 5), StreamedRequest(1, 1, 1, 1, 4)
    with pytest.raises(InputError, match="request 1 in place 1 is out of order"):
        RequestStream("bad", (late, early))
    with pytest.raises(InputError, match="has no request"):
        RequestStream("bad", ())
    with pytest.raises(InputError, match="request 0: generated_tokens 2 is more than the 1"):
        StreamedRequest(0, 1, 1, 2)


def test_a_table_says_the_same_as_lines(tmp_path):
    table = tmp_path / "trace.csv"
    table.write_text("arrival_s, prompt_tokens, generated_tokens\n2.5,7,4\n0,8,\n")
    assert RequestStream.read(table, gen_len=30).requests == (
        StreamedRequest(0, 8, 30, 30),
        StreamedRequest(1, 7, 30, 4, 2_500_000_000),
    )


def test_lines_of_openais_batch_format_have_the_words_of_their_messages(tmp_path):
    path = tmp_path / "batch.jsonl"
    text = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"text": "one two three four"}]}]
    bodies = [{"messages": text, "max_tokens": 9}, {"messages": text, "max_completion_tokens": 5, "max_tokens": 9}]
    path.write_text("".join(json.dumps({"custom_id": "a", "body": body, "arrival_s": 1}) + "\n" for body in bodies))
    assert RequestStream.read(path).requests == (
        StreamedRequest(0, 9, 9, 9, 10**9),
        StreamedRequest(1, 9, 5, 5, 10**9),
    )


def test_without_a_limit_requests_may_generate_the_usual_or_what_was_recorded(tmp_path):
    path = tmp_path / "trace.csv"
    for longest, limit in ((30, 128), (500, 500)):
        path.write_text(f"prompt_tokens,generated_tokens\n7,20\n7,{longest}\n")
        assert {one.most_tokens for one in RequestStream.read(path).requests} == {limit}


def test_padded_requests_are_as_long_as_the_longest_and_a_workload_has_them(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("prompt_tokens,generated_tokens,max_tokens\n7,20,30\n9,5,40\n")
    stream = RequestStream.read(path)
    assert [one.prompt_tokens for one in stream.padded().requests] == [9, 9]
    workload = stream.workload(padded=True)
    assert (workload.prompt_tokens, workload.gen_len, workload.padded) == ((7, 9), 40, True)


def test_lengths_of_a_file_begin_anew_and_are_no_longer_than_allowed(tmp_path):
    path = tmp_path / "lengths.jsonl"
    path.write_text('{"generated_tokens": 3}\n{"generated_tokens": 70}\n')
    lengths = Lengths.parse(str(path))
    assert [one.generated_tokens for one in RequestStream.of(WORKLOAD, 5, lengths=lengths).requests] == [
        3, 70, 3, 70, 3
    ]  # fmt: skip
    with pytest.raises(InputError, match="70 tokens are more than the 60 that a request may have"):
        lengths.drawn(60, 5, 0)


def test_a_mean_that_requests_may_not_reach_is_refused():
    with pytest.raises(InputError, match=r"lognormal:101,1: 101 tokens are more than the 100 .* larger --gen-len"):
        RequestStream.of(WORKLOAD, 5, lengths=Lengths.parse("lognormal:101,1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt_tokens,generated\n7,3\n", "generated: unknown field; did you mean generated_tokens"),
        ("arrival_s\n7\n", "prompt_tokens: missing"),
        ("prompt_tokens\n", "is empty; give one request a line"),
        ("prompt_tokens,max_tokens\n7,3\n8\n", "line 3: is not as long as the header, prompt_tokens,max_tokens"),
        ("prompt_tokens\nseven\n", "line 2: prompt_tokens: 'seven' is not allowed"),
        ("prompt_tokens\n7.5\n", "line 2: prompt_tokens: 7.5 is not allowed"),
        ("prompt_tokens,arrival_s\n7,nan\n", "line 2: arrival_s: nan is not allowed"),
        (
            "prompt_tokens,generated_tokens,max_tokens\n7,5,4\n",
            "line 2: generated_tokens: 5 is more than max_tokens, 4",
        ),
    ],
)
def test_a_table_that_is_none(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        RequestStream.read(path)


def test_a_line_of_the_batch_format_without_messages(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"custom_id": "a", "body": {"prompt": "x"}}')
    with pytest.raises(InputError, match="line 1: body: holds no list of messages"):
        RequestStream.read(path)


def test_prompts_have_lengths_of_a_law_or_a_file(tmp_path):
    problem = Problem.of("mixtral-8x7b", "gcp-t4", prompt_len=7, gen_len=90, padded=False)
    drawn, stream = StreamOptions(3000, prompt_lens="lognormal:50,0.5", gen_lens="lognormal:6,0.5").stream_of(problem)
    lengths = [one.prompt_tokens for one in stream.requests]
    assert sum(lengths) / len(lengths) == pytest.approx(50, rel=0.04)
    assert drawn.workload.prompt_tokens == tuple(lengths)
    same = [one.prompt_tokens > 50 for one in stream.requests]
    together = sum(one.generated_tokens for one, is_long in zip(stream.requests, same, strict=True) if is_long)
    assert together / sum(same) == pytest.approx(6, rel=0.05), "drawn apart from what they generate"
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_tokens": 3}\n{"prompt_tokens": 4}\n')
    _, stream = StreamOptions(3, prompt_lens=str(path)).stream_of(problem)
    assert [one.prompt_tokens for one in stream.requests] == [3, 4, 3]
    padded = replace(problem, workload=problem.workload.with_(padded=True))
    _, stream = StreamOptions(3, prompt_lens=str(path)).stream_of(padded)
    assert [one.prompt_tokens for one in stream.requests] == [4, 4, 4]
    with pytest.raises(InputError, match="prompt-lens 'lognorm:3,1': unknown; did you mean lognormal"):
        StreamOptions(3, prompt_lens="lognorm:3,1")
