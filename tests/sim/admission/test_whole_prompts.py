"""Prompts that are computed whole, padded to the longest beside them; who had one decodes wherever there is a place."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from stream_examples import EXAMPLES, STEPS, any_requests, any_rules, assert_served, serve

from sim.admission import Admission, AdmissionRules, Decoding, Joins, StreamedRequest
from traces.errors import InputError


@st.composite
def rules_for_all(draw):
    """Rules under which each of `any_requests` fits alone: a whole prompt in a step."""
    chunk = draw(st.integers(40, 160))
    return replace(draw(any_rules()), preempts=False, prefill_chunk=chunk, whole_prompts=True)


@st.composite
def some_alone(draw):
    return [replace(one, alone=draw(st.booleans())) for one in draw(any_requests())]


@EXAMPLES
@given(rules=rules_for_all(), requests=any_requests(), arrives=STEPS, cancelled=STEPS)
def test_every_request_is_served_once_unless_it_is_cancelled(rules, requests, arrives, cancelled):
    cancelled = {id_: step for id_, step in cancelled.items() if id_ < len(requests)}
    served = list(serve(rules, requests, arrives, cancelled))
    assert_served(requests, served, cancelled)
    assert all(one.held_blocks <= rules.num_blocks and one.num_running <= rules.most_running for one in served)


@EXAMPLES
@given(rules=rules_for_all(), requests=some_alone(), arrives=STEPS)
def test_prompts_are_whole_and_what_they_are_filled_up_with_counts(rules, requests, arrives):
    alone = {one.id for one in requests if one.alone}
    for one in serve(rules, requests, arrives):
        for chunks in one.composition.prompts:
            assert all(chunk.start == 0 and chunk.is_last for chunk in chunks)
            widths = {chunk.tokens + chunk.padding_tokens for chunk in chunks}
            assert widths <= {max((chunk.tokens for chunk in chunks), default=0)}
            assert len(chunks) * max(widths, default=0) <= rules.prefill_chunk
            assert len(chunks) <= rules.micro_batch_size
            assert len(chunks) < 2 or not alone & {chunk.request for chunk in chunks}


@EXAMPLES
@given(rules=rules_for_all(), requests=any_requests())
def test_nobody_overtakes(rules, requests):
    entered = [id_ for one in serve(rules, requests) for id_ in one.composition.entered]
    rank = (lambda one: (-one.prompt_tokens, one.id)) if rules.priority == "longest" else (lambda one: one.id)
    assert entered == [one.id for one in sorted(requests, key=rank)]


def test_who_enters_takes_any_place_and_its_own_room_and_leaves_it_when_it_ends():
    """The second micro-batch is filled up while the first request of it decodes; a block is used again at once."""
    rules = AdmissionRules(12, 2, 2, prefill_chunk=4, block_tokens=1, whole_prompts=True)
    admission = Admission(rules)
    for number, (prompt, most) in enumerate([(2, 3), (1, 3), (4, 2), (2, 2)]):
        admission.arrive(StreamedRequest(number, prompt, most, most))
    first = admission.step()
    assert [(chunk.request, chunk.padding_tokens) for chunk in first.prompts[0]] == [(0, 0), (1, 1)]
    assert admission.held_blocks == 3
    second = admission.step()
    assert second.decoding == ((Decoding(0, 3),), (Decoding(1, 2),))
    assert [chunk.request for chunk in second.prompts[0]] == [2]
    assert admission.held_blocks == 9
    third = admission.step([0])
    assert third.decoding == ((Decoding(2, 5),), (Decoding(1, 3),))
    assert [chunk.request for chunk in third.prompts[0]] == [3]
    assert admission.held_blocks == 10


def test_a_prompt_longer_than_a_step_takes_is_refused():
    admission = Admission(AdmissionRules(99, 2, 1, prefill_chunk=8, whole_prompts=True))
    with pytest.raises(InputError, match="which is computed whole, is more than the 8 that a step takes"):
        admission.arrive(StreamedRequest(1, 9, 1, 1))


def test_whole_prompts_are_not_preempted():
    with pytest.raises(InputError, match="preempts: true where prompts are whole"):
        AdmissionRules(9, 1, 1, 1, preempts=True, whole_prompts=True)


def test_rules_say_what_splits_prompts():
    rules = AdmissionRules(9, 1, 1, 1)
    assert rules.splits_prompts
    assert not replace(rules, joins=Joins.TOGETHER).splits_prompts
    assert not replace(rules, whole_prompts=True).splits_prompts
