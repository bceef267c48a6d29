"""Who is in, whatever comes: each request served once, never above memory, nobody starved, blocks counted exactly."""

from collections import Counter

import pytest
from hypothesis import given
from stream_examples import EXAMPLES, STEPS, any_requests, any_rules, assert_served, serve

from sim.admission import Admission, AdmissionRules, Chunk, Decoding, Priority, StreamedRequest
from traces.errors import InputError

RULES = AdmissionRules(num_blocks=100, micro_batch_size=2, num_micro_batches=2, prefill_chunk=10, block_tokens=4)


def request(number, prompt=5, most=3, generated=None):
    return StreamedRequest(number, prompt, most, generated or most)


def chunks_of(served):
    return [chunk for one in served for chunks in one.composition.prompts for chunk in chunks]


def assert_tokens_are_served_once(requests, served):
    """Whatever was preempted: a token of a request once, each from the entries that it has by then."""
    tokens = Counter(id_ for one in served for id_ in one.composition.gives_tokens_to)
    assert tokens == {one.id: one.generated_tokens for one in requests}


@EXAMPLES
@given(rules=any_rules(), requests=any_requests(), arrives=STEPS)
def test_every_request_is_served_once_wherever_it_arrives(rules, requests, arrives):
    assert_tokens_are_served_once(requests, list(serve(rules, requests, arrives)))


@EXAMPLES
@given(rules=any_rules(), requests=any_requests(), arrives=STEPS, cancelled=STEPS)
def test_a_request_that_is_cancelled_leaves_the_others_alone(rules, requests, arrives, cancelled):
    cancelled = {id_: step for id_, step in cancelled.items() if id_ < len(requests)}
    assert_served(requests, list(serve(rules, requests, arrives, cancelled)), cancelled)


@EXAMPLES
@given(rules=any_rules(), requests=any_requests(), arrives=STEPS)
def test_blocks_are_those_of_real_ages_and_never_more_than_there_are(rules, requests, arrives):
    """Counted anew from the compositions: an entry for each token of the prompt so far, and each one decoded."""
    entries = {}
    for one in serve(rules, requests, arrives):
        here = {}
        for chunks in one.composition.prompts:
            here.update({chunk.request: chunk.stop for chunk in chunks})
        for mine in one.composition.decoding:
            here.update({two.request: two.context_tokens for two in mine})
        for id_, before in entries.items():
            assert here.get(id_, before) >= before or id_ in one.composition.preempted, "a prompt goes back"
        held = sum(-(-tokens // rules.block_tokens) for tokens in here.values())
        assert one.held_blocks == held <= rules.num_blocks
        assert len(here) == one.num_running, "who is in has something to do in every step"
        entries = here


@EXAMPLES
@given(rules=any_rules(), requests=any_requests(), arrives=STEPS)
def test_micro_batches_and_chunks_are_as_large_as_the_rules_say(rules, requests, arrives):
    for one in serve(rules, requests, arrives):
        decoding, prompts = one.composition.decoding, one.composition.prompts
        assert (len(decoding), len(prompts)) == (rules.num_micro_batches, rules.num_prompts)
        assert all(len(mine) <= rules.micro_batch_size for mine in decoding)
        assert all(sum(chunk.tokens for chunk in chunks) <= rules.prefill_chunk for chunks in prompts)
        assert all(chunk.tokens > 0 for chunks in prompts for chunk in chunks)
        ids = [chunk.request for chunks in prompts for chunk in chunks]
        ids += [mine.request for one_of in decoding for mine in one_of]
        assert len(ids) == len(set(ids)), "twice in one step"


@EXAMPLES
@given(rules=any_rules(), requests=any_requests(), arrives=STEPS)
def test_a_prompt_is_computed_from_its_first_token_to_its_last_by_one_micro_batch(rules, requests, arrives):
    begun = {}
    for one in serve(rules, requests, arrives):
        for id_ in one.composition.preempted:
            begun.pop(id_, None)
        for lane, chunks in enumerate(one.composition.prompts):
            for chunk in chunks:
                assert (chunk.start, lane) == begun.get(chunk.request, (0, lane))
                begun[chunk.request] = chunk.stop, lane
                if chunk.is_last:
                    del begun[chunk.request]
        assert set(begun) <= {chunk.request for chunks in one.composition.prompts for chunk in chunks}


@EXAMPLES
@given(rules=any_rules(), requests=any_requests(), arrives=STEPS)
def test_nobody_overtakes_who_waits(rules, requests, arrives):
    """By arrival all enter in the order in which they came; by length so do those that are equally long."""
    order, preempted = [], set()
    for one in serve(rules, requests, arrives):
        preempted.update(one.composition.preempted)
        order += [id_ for id_ in one.composition.entered if id_ not in preempted]
    came = sorted(requests, key=lambda one: arrives.get(one.id, 0))  # stable: by id within a step
    of_length = (lambda one: one.prompt_tokens) if rules.priority is Priority.LONGEST else (lambda one: 0)
    for length in {of_length(one) for one in requests}:
        mine = [one.id for one in came if of_length(one) == length]
        assert [id_ for id_ in order if id_ in mine] == mine


@EXAMPLES
@given(rules=any_rules(), requests=any_requests())
def test_the_same_requests_have_the_same_compositions(rules, requests):
    assert list(serve(rules, requests)) == list(serve(rules, requests))


@EXAMPLES
@given(rules=any_rules(), requests=any_requests(), arrives=STEPS)
def test_nobody_is_preempted_unasked(rules, requests, arrives):
    if not rules.preempts:
        assert not any(one.composition.preempted for one in serve(rules, requests, arrives))


# by hand -----------------------------------------------------------------------------------------------------------


def test_one_request_step_by_step():
    """13 tokens in chunks of 10, then two more tokens from 14 and 15 entries."""
    served = [one.composition for one in serve(RULES, [request(0, prompt=13, most=3)])]
    assert [one.prompts for one in served] == [
        ((Chunk(0, 0, 10, is_last=False),),), ((Chunk(0, 10, 13, is_last=True),),), ((),), ((),), ((),)
    ]  # fmt: skip
    assert [one.decoding[0] for one in served] == [(), (), (Decoding(0, 14),), (Decoding(0, 15),), ()]
    assert [one.gives_tokens_to for one in served] == [(), (0,), (0,), (0,), ()]
    assert served[-1].is_empty


def test_a_chunk_that_has_room_takes_the_next_prompt_too():
    first, second = (
        one.composition for one, _ in zip(serve(RULES, [request(0, 6), request(1, 6)]), "ab", strict=False)
    )
    assert first.prompts == ((Chunk(0, 0, 6, is_last=True), Chunk(1, 0, 4, is_last=False)),)
    assert second.prompts == ((Chunk(1, 4, 6, is_last=True),),)
    assert second.decoding == ((Decoding(0, 7),), ())


def test_who_begins_to_decode_goes_where_the_fewest_tokens_are():
    served = list(serve(RULES, [request(0, 8), request(1, 2), request(2, 4, most=2)]))
    assert served[1].composition.decoding == ((Decoding(0, 9),), (Decoding(1, 3),))
    assert served[2].composition.decoding == ((Decoding(0, 10),), (Decoding(1, 4), Decoding(2, 5)))


def test_blocks_at_their_real_age_let_more_in_than_whole_lives_would():
    """Ten blocks: two lives of six at their longest, of which the second begins two steps before the first one ends."""
    rules = AdmissionRules(10, 4, 1, prefill_chunk=4, block_tokens=1)
    served = list(serve(rules, [request(0, prompt=3, most=4), request(1, prompt=3, most=4)]))
    assert [one.composition.entered for one in served[:4]] == [(0,), (), (1,), ()]
    assert [one.held_blocks for one in served] == [3, 4, 5 + 3, 6 + 4, 5, 6, 0]


def test_longest_first():
    rules = AdmissionRules(100, 2, 2, prefill_chunk=10, priority=Priority.LONGEST)
    first = next(serve(rules, [request(0, 2), request(1, 9), request(2, 5)])).composition
    assert first.entered == (1, 2)


def test_the_last_to_enter_makes_room_and_is_computed_anew():
    """Two requests of three entries in seven blocks: in the third step they would hold eight."""
    rules = AdmissionRules(7, 4, 1, prefill_chunk=8, block_tokens=1, preempts=True)
    served = [one.composition for one in serve(rules, [request(0, 3, most=4), request(1, 3, most=3)])]
    assert served[0].entered == (0, 1)
    assert served[1].preempted == (1,)
    again = next(one for one in served[1:] if one.entered == (1,))
    assert again.prompts == ((Chunk(1, 0, 4, is_last=True),),)


def test_a_request_that_could_never_be_in_is_refused_and_forgotten():
    admission = Admission(RULES)
    with pytest.raises(InputError, match=r"request 7: .* take 101 blocks of KV cache, of which there are 100: shorten"):
        admission.arrive(request(7, prompt=399, most=3))
    assert admission.num_waiting == 0
    admission.arrive(request(8, prompt=398, most=3))


def test_an_end_of_nobody_is_refused():
    with pytest.raises(InputError, match="request 3: has ended, but neither waits nor runs"):
        Admission(RULES).step(ended=[3])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_blocks", 0, "num_blocks: 0 is not allowed"),
        ("prefill_chunk", -1, "prefill_chunk: -1"),
        ("num_prompts", 0, "num_prompts: 0"),
        ("priority", "shortest", "priority: 'shortest' is not allowed; give arrival or longest"),
        ("preempts", 1, "preempts: 1 is not allowed; give true or false"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(name, value, message):
    fields = {"num_blocks": 1, "micro_batch_size": 1, "num_micro_batches": 1, "prefill_chunk": 1, name: value}
    with pytest.raises(InputError, match=message):
        AdmissionRules(**fields)


@pytest.mark.parametrize(("preempts", "entered"), [(False, (0,)), (True, (0, 1))])
def test_who_may_not_be_preempted_enters_only_where_it_can_grow(preempts, entered):
    """Each of two takes 2 blocks now and 5 in the end, of 6."""
    admission = Admission(AdmissionRules(6, 2, 1, 10, block_tokens=1, preempts=preempts))
    for number in range(2):
        admission.arrive(request(number, prompt=2, most=4))
    assert admission.step().entered == entered
