import json

import pytest
from hypothesis import given, strategies as st

from sim.problem import DEFAULT_GEN_LEN, Basis, Workload
from traces.errors import InputError

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=20).map(tuple)


def error_of(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Presets: MoE-Lightning's workloads (arXiv 2411.11217, section 5)


@pytest.mark.parametrize(
    ("name", "mean", "longest", "gen_len"),
    [("mtbench", 77, 418, 128), ("helm-synthetic", 242, 256, 50), ("helm-summarization", 1693, 1984, 64)],
)
def test_preset_has_the_published_mean_maximum_and_generation_length(name, mean, longest, gen_len):
    workload = Workload.load(name)
    assert round(workload.mean_prompt_tokens) == mean
    assert workload.max_prompt_tokens == longest
    assert workload.gen_len == gen_len
    assert workload.name == name


@pytest.mark.parametrize(("name", "mean"), [("helm-synthetic", 242), ("helm-summarization", 1693)])
def test_helm_surrogates_have_exactly_the_published_mean(name, mean):
    assert Workload.load(name).mean_prompt_tokens == mean


def test_presets_are_listed_and_each_says_where_it_comes_from():
    assert Workload.presets() == ("helm-summarization", "helm-synthetic", "mtbench")
    for name in Workload.presets():
        workload = Workload.load(name)
        assert "surrogate" in workload.source
        assert "2411.11217" in workload.source
        assert workload.description
        assert workload.basis in {Basis.FITTED, Basis.ASSUMED}


def test_mtbench_has_eighty_questions_in_the_order_of_the_benchmark():
    lengths = Workload.load("mtbench").prompt_tokens
    assert len(lengths) == 80
    # Words of questions 81, 105 and 160, counted by hand, x 1.5698; question 138 is the longest.
    assert (lengths[0], lengths[24], lengths[79]) == (round(18 * 1.5698), round(161 * 1.5698), round(14 * 1.5698))
    assert lengths.index(418) == 138 - 81


# Requests


def test_questions_are_repeated_to_make_as_many_requests_as_asked_for():
    workload = Workload("w", (5, 7, 9), gen_len=1)
    assert workload.requests(2) == (5, 7)
    assert workload.requests(7) == (5, 7, 9, 5, 7, 9, 5)


def test_padding_gives_every_request_the_longest_prompt():
    workload = Workload("w", (5, 7, 9), gen_len=1, padded=True)
    assert workload.requests(4) == (9, 9, 9, 9)
    assert workload.max_prompt_tokens == 9
    assert workload.mean_prompt_tokens == 9


def test_without_padding_the_mean_is_that_of_the_questions():
    assert Workload("w", (5, 7, 9, 10), gen_len=1).mean_prompt_tokens == 7.75


@given(LENGTHS, st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_fewer_requests_are_the_first_of_more(lengths, few, more, padded):
    workload = Workload("w", lengths, gen_len=1, padded=padded)
    few, more = sorted((few, more))
    assert len(workload.requests(more)) == more
    assert workload.requests(few) == workload.requests(more)[:few]


@given(LENGTHS, st.integers(1, 5))
def test_whole_copies_keep_the_mean(lengths, copies):
    workload = Workload("w", lengths, gen_len=1)
    requests = workload.requests(copies * len(lengths))
    assert sum(requests) == pytest.approx(workload.mean_prompt_tokens * len(requests))
    assert max(requests) == workload.max_prompt_tokens


def test_with_changes_only_what_is_given():
    workload = Workload.load("mtbench")
    assert workload.with_(gen_len=32).gen_len == 32
    assert workload.with_(gen_len=32).prompt_tokens == workload.prompt_tokens
    assert workload.with_(padded=True).padded
    assert workload.with_(padded=True).with_(gen_len=32).padded
    assert workload.with_() == workload


def test_fixed_workload_has_one_length():
    workload = Workload.fixed(prompt_len=300, gen_len=16)
    assert workload.requests(3) == (300, 300, 300)
    assert workload.gen_len == 16
    assert "300" in workload.name


# Files


def test_toml_file_of_the_user(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('prompt_tokens = [10, 30]\ngen_len = 4\npadded = true\nbasis = "measured"\nsource = "our logs"\n')
    workload = Workload.load(path)
    assert workload == Workload.load(str(path))
    assert (workload.name, workload.prompt_tokens, workload.gen_len) == ("mine", (10, 30), 4)
    assert (workload.padded, workload.basis, workload.source) == (True, Basis.MEASURED, "our logs")


def test_jsonl_counts_tokens_ids_and_words(tmp_path):
    path = tmp_path / "requests.jsonl"
    lines = [
        {"prompt_tokens": 123},
        {"prompt_token_ids": [1, 2, 3, 4]},
        {"prompt": " ten words " * 5},
        {"prompt": "text with its token count", "prompt_tokens": 6},
    ]
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    workload = Workload.load(path)
    assert workload.prompt_tokens == (123, 4, 16, 6)
    assert workload.gen_len == DEFAULT_GEN_LEN
    assert workload.basis is Basis.FITTED
    assert "1 as text, counted as words x 1.5698 (surrogate)" in workload.source


def test_jsonl_of_token_counts_alone_is_no_surrogate(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt_tokens": 3}\n')
    workload = Workload.load(path)
    assert workload.basis is Basis.MEASURED
    assert "surrogate" not in workload.source


def test_jsonl_line_separators_inside_a_prompt_do_not_end_the_line(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "two\u2028words"}\r\n{"prompt_tokens": 5}\r\n', encoding="utf-8", newline="")
    assert Workload.load(path).prompt_tokens == (3, 5)


# Mistakes


def test_unknown_preset_names_the_nearest_and_all():
    message = error_of(Workload.load, "mtbnech")
    assert "'mtbnech'" in message
    assert "did you mean mtbench?" in message
    assert "helm-summarization, helm-synthetic, mtbench" in message


def test_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("1,2")
    assert ".toml" in error_of(Workload.load, path)


@pytest.mark.parametrize("name", ["absent.toml", "absent.jsonl"])
def test_missing_file_is_named(tmp_path, name):
    message = error_of(Workload.load, tmp_path / name)
    assert name in message
    assert "No such file" in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "holds a list"),
        ('{"text": "hello"}', "not a request"),
        ('{"prompt_tokens": 0}', "prompt_tokens: 0"),
        ('{"prompt_tokens": -3}', "prompt_tokens: -3"),
        ('{"prompt_tokens": 1.5}', "prompt_tokens: 1.5"),
        ('{"prompt_tokens": "12"}', "prompt_tokens: '12'"),
        ('{"prompt_tokens": true}', "prompt_tokens: True"),
        ('{"prompt_token_ids": []}', "prompt_token_ids: 0"),
        ('{"prompt_token_ids": 7}', "prompt_token_ids: 7 is not a list"),
        ('{"prompt": " "}', "prompt: 0"),
        ('{"prompt": 7}', "prompt: 7 is not a text"),
    ],
)
def test_bad_line_is_named_by_number(tmp_path, line, problem):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt_tokens": 5}\n\n' + line + "\n")
    message = error_of(Workload.load, path)
    assert "requests.jsonl" in message
    assert "line 3: " + problem in message


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_jsonl_is_refused(tmp_path, content):
    path = tmp_path / "requests.jsonl"
    path.write_text(content)
    assert "empty" in error_of(Workload.load, path)


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in error_of(Workload.load, path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("gen_len = ", "is not TOML"),
        ("gen_len = 4", "prompt_tokens: missing"),
        ("prompt_tokens = [1]", "gen_len: missing"),
        ("prompt_tokens = [1]\ngen_len = 0", "gen_len: 0"),
        ("prompt_tokens = [1]\ngen_len = true", "gen_len: True"),
        ("prompt_tokens = []\ngen_len = 4", "prompt_tokens: empty"),
        ("prompt_tokens = 9\ngen_len = 4", "prompt_tokens: 9 is not a list"),
        ("prompt_tokens = [3, 0]\ngen_len = 4", "prompt_tokens[1]: 0"),
        ("prompt_tokens = [3]\ngen_len = 4\npadded = 1", "padded: 1"),
        ("prompt_tokens = [3]\ngen_len = 4\nname = 1", "name: 1"),
        ('prompt_tokens = [3]\ngen_len = 4\nbasis = "guess"', "basis: 'guess' is not allowed; give measured or"),
        ("prompt_tokens = [3]\ngen_length = 4", "did you mean gen_len?"),
    ],
)
def test_bad_toml_names_the_file_and_the_field(tmp_path, content, problem):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    message = error_of(Workload.load, path)
    assert "mine.toml" in message
    assert problem in message


def test_lengths_below_one_are_refused():
    assert error_of(Workload.fixed, 0, 5).startswith("prompt-len: 0")
    assert error_of(Workload.fixed, 5, 0).startswith("gen_len: 0")
    assert error_of(Workload.load("mtbench").with_, gen_len=-1).startswith("gen_len: -1")
    assert error_of(Workload.load("mtbench").requests, 0).startswith("batch-size: 0")
