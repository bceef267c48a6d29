"""Streams and rules that hypothesis thinks of, and a stream served step by step without a clock."""

from collections import Counter
from typing import NamedTuple

from hypothesis import settings, strategies as st

from sim.admission import Admission, AdmissionRules, Composition, KvLayers, Priority, StreamedRequest

EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)
STEPS = st.dictionaries(st.integers(0, 13), st.integers(0, 40))
"""By request, the step in which something happens to it."""


LAYERS = ((KvLayers(),), (KvLayers(1), KvLayers(2, 12)), (KvLayers(1, 30),))
"""All alike, two thirds with a short window, and all with one."""


class Served(NamedTuple):
    """One step as it was decided: who waited and was in, and how many blocks were held."""

    composition: Composition
    held_blocks: int
    num_waiting: int
    num_running: int


@st.composite
def any_rules(draw, most_tokens=60):
    """Little room, of which every request of up to `most_tokens` tokens fits alone."""
    block, layers = draw(st.integers(1, 7)), draw(st.sampled_from(LAYERS))
    return AdmissionRules(
        num_blocks=sum(one.units for one in layers) * (-(-most_tokens // block) + draw(st.integers(0, 25))),
        micro_batch_size=draw(st.integers(1, 4)),
        num_micro_batches=draw(st.integers(1, 4)),
        prefill_chunk=draw(st.integers(1, 40)),
        num_prompts=draw(st.integers(1, 3)),
        block_tokens=block,
        priority=draw(st.sampled_from(Priority)),
        preempts=draw(st.booleans()),
        layers=layers,
    )


@st.composite
def any_requests(draw, most=14):
    """Requests of up to 60 tokens in all, some of which end before they must."""
    found = []
    for number in range(draw(st.integers(1, most))):
        limit = draw(st.integers(1, 20))
        found.append(StreamedRequest(number, draw(st.integers(1, 40)), limit, draw(st.integers(1, limit))))
    return found


def served_by(rules, requests, most_steps):
    """The first steps of requests that all come at once; less if they have gone before."""
    return [one for one, _ in zip(serve(rules, requests), range(most_steps), strict=False)]


def serve(rules, requests, arrives=None, cancelled=None, most_steps=5_000):
    """Every step until all requests have gone; `arrives` and `cancelled` give the steps for some of them by id."""
    admission, has = Admission(rules), {}
    arrives, cancelled = arrives or {}, cancelled or {}
    left, gone = {one.id: one for one in requests}, set()
    for step in range(most_steps):
        for one in requests:
            if arrives.get(one.id, 0) == step:
                admission.arrive(one)
        ended = [id_ for id_, number in has.items() if number == left[id_].generated_tokens and id_ not in gone]
        ended += [
            id_ for id_, when in cancelled.items()
            if when == step and id_ not in gone and id_ not in ended and arrives.get(id_, 0) <= step
        ]  # fmt: skip
        composition = admission.step(ended)
        gone.update(ended)
        for id_ in composition.gives_tokens_to:
            has[id_] = has.get(id_, 0) + 1
        yield Served(composition, admission.held_blocks, admission.num_waiting, admission.num_running)
        if len(gone) == len(requests):
            return
    raise AssertionError(f"{len(requests) - len(gone)} requests were never served")


def assert_served(requests, served, cancelled):
    """Each request has all its tokens, or was cancelled before; nothing is left of anybody."""
    tokens = Counter(id_ for one in served for id_ in one.composition.gives_tokens_to)
    for one in requests:
        assert tokens[one.id] == one.generated_tokens or (one.id in cancelled and tokens[one.id] < one.generated_tokens)
    assert (served[-1].num_running, served[-1].num_waiting, served[-1].held_blocks) == (0, 0, 0)
