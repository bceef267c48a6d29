"""Results that can be trusted: one run writes them, and only what the same settings made is gone on with."""

import json
import os
import tempfile
import threading
from pathlib import Path

import pytest

from engine.generation.files.answers import Answer, error_line, output_line
from engine.generation.files.made_by import MadeBy, seed_in
from engine.generation.files.requests import read_requests
from engine.generation.files.results import Results, UnorderedResults
from traces.errors import InputError

MADE_BY = MadeBy("folder/model", {"max_new_tokens": 4, "temperature": 0.5}, 7)
NOBODY = 65534
LINES = [{"prompt": "a"}, {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "x"}]}}, {"prompt": ""}]


@pytest.fixture
def requests(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in LINES), encoding="utf-8")
    first, second, third = read_requests(tmp_path / "in.jsonl")
    return [first, second, third.refused("is empty")]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def written(requests, made_by=MADE_BY, *, numbered=False):
    answer = Answer([5, 6], "x", False)
    lines = [output_line(one, [answer], made_by, numbered=numbered) for one in requests[:2]]
    return [*lines, error_line(requests[2], numbered=numbered)]


def test_a_second_run_is_refused_until_the_first_has_ended(requests, output):
    first = Results(output, requests, resume=False)
    for resume in (False, True):
        with pytest.raises(InputError, match="another run writes it"):
            Results(output, requests, resume)
    first.append(written(requests))
    first.close()
    again = Results(output, requests, resume=True)
    assert (again.done, again.failed) == (3, 1)
    again.close()


def test_what_was_begun_for_nothing_is_removed(requests, output):
    Results(output, requests, resume=False).close()
    assert not output.exists()
    Results(output, requests, resume=True).close()
    assert not output.exists()


@pytest.mark.parametrize("kind", [Results, UnorderedResults])
def test_results_say_what_made_them_and_only_the_same_go_on(requests, output, kind):
    output.write_text("".join(written(requests, numbered=kind is UnorderedResults)[:2]), encoding="utf-8")
    results = kind(output, requests, resume=True)
    results.check_made_by(MADE_BY)
    assert seed_in(results.made_by) == 7
    for other, told in (
        (
            MadeBy("folder/model", {"max_new_tokens": 9, "temperature": 0.5}, 7),
            "max_new_tokens 4, not max_new_tokens 9",
        ),
        (MadeBy("folder/model", {"max_new_tokens": 4}, None), "seed 7, temperature 0.5, not no seed, no temperature"),
        (MadeBy("other", {"max_new_tokens": 4, "temperature": 0.5}, 7), "model folder/model, not model other"),
    ):
        with pytest.raises(InputError, match=told):
            results.check_made_by(other)
    results.check_made_by(MadeBy("folder/../folder/model", MADE_BY.options, 7))
    results.close()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"my only copy of the notes", "holds no complete result"),
        (b"notes\nof two lines\n", "line 1 is no result"),
        (b'{"prompt": "a"}\n', "line 1 is no result"),
        (b"\xff\xfe\x00\n", "holds no results but other bytes"),
        (b'{"prompt": "a", "text": "x", "token_ids": [3], "finished": true}\n', "does not say what made it"),
        (b'{"prompt": "b", "error": "x"}\n', "does not belong to this input"),
        (b'{"prompt": "a", "error": "x"}\n' * 4, "4 results for 3 requests"),
    ],
)
def test_what_is_no_result_of_these_requests_is_refused_and_stays(requests, output, content, told):
    output.write_bytes(content)

    def go_on():
        results = Results(output, requests, resume=True)
        try:
            results.check_made_by(MADE_BY)
        finally:
            results.close()

    with pytest.raises(InputError, match=told):
        go_on()
    assert output.read_bytes() == content


def test_results_of_several_settings_are_refused(requests, output):
    other = MadeBy("folder/model", {"max_new_tokens": 8}, None)
    output.write_text(written(requests)[0] + written(requests, other)[1], encoding="utf-8")
    with pytest.raises(InputError, match="results of several settings"):
        Results(output, requests, resume=True)


@pytest.mark.parametrize("cut", [1, 9, 20, 50])
def test_a_first_result_that_was_cut_short_is_gone_on_with(requests, output, cut):
    whole = written(requests)[0].encode()
    output.write_bytes(whole[:cut])
    results = Results(output, requests, resume=True)
    results.append([whole.decode()])
    results.close()
    assert output.read_bytes() == whole


def test_a_folder_is_no_output(requests, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        Results(tmp_path, requests, resume=True)


@pytest.fixture
def as_anybody():
    """A folder of somebody else's, and this process without an administrator's power over it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        lower, usual = os.geteuid() == 0, os.geteuid()
        yield folder, (lambda: os.seteuid(NOBODY)) if lower else (lambda: None)
        os.seteuid(usual)
        folder.chmod(0o755)


@pytest.mark.parametrize("kind", [Results, UnorderedResults])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_where_nobody_may_write_is_told_in_a_line_and_nothing_changes(requests, as_anybody, kind, resume, there):
    folder, become = as_anybody
    output, content = folder / "out.jsonl", "".join(written(requests, numbered=kind is UnorderedResults)[:1])
    if there:
        output.write_text(content, encoding="utf-8")
        output.chmod(0o444)
    folder.chmod(0o555)
    become()
    with pytest.raises(InputError) as caught:
        kind(output, requests, resume)
    assert str(caught.value) == f"output {output}: cannot be written: Permission denied"
    assert list(folder.iterdir()) == [output] * there
    assert not there or output.read_text(encoding="utf-8") == content


def test_of_many_that_open_it_at_once_one_writes(requests, output):
    opened, refused, ready = [], [], threading.Barrier(8)

    def go():
        ready.wait()
        try:
            opened.append(Results(output, requests, resume=False))
        except InputError:
            refused.append(1)

    threads = [threading.Thread(target=go) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert (len(opened), len(refused)) == (1, 7)
    opened[0].close()
