"""Requests that join a micro-batch together: whole prompts, nobody joins later, room of the longest to the last end."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from stream_examples import EXAMPLES, STEPS, any_requests, any_rules, assert_served, serve

from sim.admission import Admission, AdmissionRules, Decoding, Joins, StreamedRequest
from traces.errors import InputError


@st.composite
def rules_for_all(draw):
    """Rules under which each of `any_requests` fits alone: a whole prompt in a step."""
    chunk = draw(st.integers(40, 160))
    return replace(draw(any_rules()), preempts=False, prefill_chunk=chunk, joins=Joins.TOGETHER)


@st.composite
def some_alone(draw):
    return [replace(one, alone=draw(st.booleans())) for one in draw(any_requests())]


def cohorts_of(served):
    """Step by step, who begins together, and where."""
    for one in served:
        for chunks, place in zip(one.composition.prompts, one.composition.places, strict=True):
            if chunks:
                yield one.composition.step, place, [chunk.request for chunk in chunks]


@EXAMPLES
@given(rules=rules_for_all(), requests=any_requests(), arrives=STEPS, cancelled=STEPS)
def test_every_request_is_served_once_unless_it_is_cancelled(rules, requests, arrives, cancelled):
    cancelled = {id_: step for id_, step in cancelled.items() if id_ < len(requests)}
    assert_served(requests, list(serve(rules, requests, arrives, cancelled)), cancelled)


@EXAMPLES
@given(rules=rules_for_all(), requests=any_requests(), arrives=STEPS)
def test_prompts_are_computed_whole_and_padded_fit_a_step(rules, requests, arrives):
    for one in serve(rules, requests, arrives):
        for chunks in one.composition.prompts:
            assert all(chunk.start == 0 and chunk.is_last for chunk in chunks)
            assert len(chunks) * max((chunk.tokens for chunk in chunks), default=0) <= rules.prefill_chunk
            assert len(chunks) <= rules.micro_batch_size


@EXAMPLES
@given(rules=rules_for_all(), requests=any_requests(), arrives=STEPS)
def test_a_micro_batch_is_refilled_only_when_it_is_empty_and_by_all_at_once(rules, requests, arrives):
    served = list(serve(rules, requests, arrives))
    begun = {(step, place): ids for step, place, ids in cohorts_of(served)}
    for before, now in pairwise(served):
        for place, mine in enumerate(now.composition.decoding):
            known = {one.request for one in before.composition.decoding[place]}
            joined = begun.get((before.composition.step, place), [])
            assert not (known and joined), "somebody decodes where others begin"
            assert {one.request for one in mine} <= known | set(joined)


@EXAMPLES
@given(rules=rules_for_all(), requests=any_requests(), arrives=STEPS)
def test_there_are_never_more_blocks_than_there_is_room(rules, requests, arrives):
    for one in serve(rules, requests, arrives):
        assert one.held_blocks <= rules.num_blocks


@EXAMPLES
@given(rules=rules_for_all(), requests=some_alone())
def test_who_is_to_be_alone_shares_no_micro_batch(rules, requests):
    alone = {one.id for one in requests if one.alone}
    for _, _, ids in cohorts_of(serve(rules, requests)):
        assert len(ids) == 1 or not alone & set(ids)


# by hand -----------------------------------------------------------------------------------------------------------


def test_who_joins_together_takes_the_room_of_the_longest_until_the_last_one_ends():
    """Prompts of 2 and 4, generating 1 and 3: each counts 4 blocks, then 5 and 6, until both have gone."""
    rules = AdmissionRules(20, 2, 1, prefill_chunk=8, block_tokens=1, joins=Joins.TOGETHER)
    served = list(serve(rules, [StreamedRequest(0, 2, 1, 1), StreamedRequest(1, 4, 3, 3)]))
    assert [one.held_blocks for one in served] == [8, 10, 12, 0]
    assert [len(one.composition.decoding[0]) for one in served] == [0, 1, 1, 0]


def test_who_has_ended_is_computed_until_the_last_one_has_with_what_its_prompt_was_filled_up_with():
    """Prompts of 2, 4 and 3, generating 1, 4 and 2: the first ends where it enters, the third a step later."""
    rules = AdmissionRules(99, 3, 1, prefill_chunk=12, block_tokens=1, joins=Joins.TOGETHER)
    requests = [StreamedRequest(i, *lengths) for i, lengths in enumerate([(2, 1, 1), (4, 4, 4), (3, 4, 2)])]
    steps = [one.composition for one in serve(rules, requests)]
    assert [chunk.padding_tokens for chunk in steps[0].prompts[0]] == [2, 0, 1]
    assert [one.decoding[0] for one in steps] == [
        (),
        (Decoding(1, 5), Decoding(2, 4, 1)),
        (Decoding(1, 6),),
        (Decoding(1, 7),),
        (),
    ]
    assert [set(one.ended[0]) for one in steps] == [
        set(),
        {Decoding(0, 3, 2)},
        {Decoding(0, 4, 2), Decoding(2, 5, 1)},
        {Decoding(0, 5, 2), Decoding(2, 6, 1)},
        set(),
    ]


def test_requests_wait_for_an_empty_micro_batch():
    """Two places of two: the fifth request waits until both of a micro-batch have ended."""
    rules = AdmissionRules(99, 2, 2, prefill_chunk=9, joins=Joins.TOGETHER)
    requests = [StreamedRequest(i, 3, 3, 1 + i % 2) for i in range(5)]
    assert list(cohorts_of(serve(rules, requests))) == [(0, 0, [0, 1]), (1, 1, [2, 3]), (2, 0, [4])]


def test_prompts_that_are_too_long_for_one_step_go_apart():
    rules = AdmissionRules(99, 3, 2, prefill_chunk=9, joins=Joins.TOGETHER)
    requests = [StreamedRequest(i, length, 2, 2) for i, length in enumerate((2, 4, 5, 5))]
    assert [ids for _, _, ids in cohorts_of(serve(rules, requests))] == [[0, 1], [2], [3]]


def test_a_prompt_that_no_step_holds_is_refused():
    admission = Admission(AdmissionRules(99, 2, 1, prefill_chunk=8, joins=Joins.TOGETHER))
    with pytest.raises(InputError, match="request 3: a prompt of 9 tokens, which is computed whole"):
        admission.arrive(StreamedRequest(3, 9, 1, 1))
    assert admission.num_waiting == 0


def test_who_joins_together_is_not_preempted():
    with pytest.raises(InputError, match="preempts: true where requests join together"):
        AdmissionRules(9, 1, 1, 1, preempts=True, joins=Joins.TOGETHER)
