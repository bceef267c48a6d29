"""What a run holds on the device is never more than its plan says: random families, schedules, policies and choices."""

import contextlib

import pytest
from engine_models import make_prompts
from hypothesis import HealthCheck, given, seed, settings, strategies as st
from wide_models import ALIGNED_BYTES, FAMILIES, FINE, WINDOWED, as_run, wide

import engine
from engine.calibration import described
from engine.device import EmulatedDevice
from sim.cost import plan_memory
from sim.problem import Hardware, Policy, Problem, Workload
from sim.schedule import by_name, registered
from sim.simulation import StreamSetup
from traces.errors import InputError

CHOICES = (
    {},
    {},
    {"do_sample": True, "temperature": 0.8},
    {"do_sample": True, "top_k": 50},
    {"do_sample": True, "top_p": 0.9},
    {"do_sample": True, "typical_p": 0.9},
    {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2},
    {"do_sample": True, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
    {"repetition_penalty": 1.2},
    {"bad_words_ids": [[3]], "sequence_bias": [[[4], 1.0]]},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 2},
)
VALUES = {
    "experts_on_device": (0.25, 0.5, 1.0),
    "experts_on_host": (0.25, 0.5),
    "experts_fetched": (0.25,),
    "attention": ("gpu",),
    "kv_on_device": (0.5, 1.0),
    "attention_on_device": (0.5, 1.0),
    "pin_weights": (0.5, 1.0),
    "pages": (1, 3, 7),
    "prefill_experts": ("cpu", "gpu"),
    "defer_experts": (1,),
}
"""Beside what is usual, values of the fields of a policy."""

KINDS = [(family, False) for family in sorted(FAMILIES)] + [(family, True) for family in sorted(WINDOWED)]
"""Families, and whether their layers have windows."""

PLACES = st.lists(st.sampled_from(sorted(VALUES)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(VALUES[name]) for name in names})
)


@st.composite
def runs(draw):
    """A family with a vocabulary, a schedule, a policy's fields, prompts, how many tokens, and how they are chosen.

    Some are streams.
    """
    kind, vocabulary = draw(st.sampled_from(KINDS)), draw(st.sampled_from([128, 128, 3000]))
    lengths = draw(st.lists(st.integers(1, 56), min_size=1, max_size=12))
    size, new = draw(st.integers(1, len(lengths))), draw(st.integers(1, 5))
    streamed = draw(st.sampled_from([False, False, False, True]))
    names = [name for name in sorted(registered()) if by_name(name).system.mixes or not streamed]
    name = draw(st.sampled_from(names))
    places = draw(PLACES.filter(lambda places: works(name, len(lengths), size, places)))
    return kind, vocabulary, name, places, lengths, size, new, draw(st.sampled_from(CHOICES)), streamed


def works(name, num_requests, size, places):
    with contextlib.suppress(InputError):
        return Policy.usual(by_name(name), num_requests, size, **places).check_places(by_name(name)) is None
    return False


def check(run):
    (family, windowed), vocabulary, name, places, lengths, size, new, how, streamed = run
    changes = {"vocab_size": vocabulary, "intermediate_size": FINE["intermediate_size"]}
    model = wide(family, windowed=windowed, **changes)
    with contextlib.suppress(InputError):  # not where this schedule works, or nothing that this family can do
        (check_stream if streamed else check_batch)(model, by_name(name), places, lengths, size, new, how)


def check_batch(model, schedule, places, lengths, size, new, how):
    known, batch = described(model), as_run(lengths, size, new, sampled=bool(how))
    policy = Policy.usual(schedule, len(lengths), size, **places)
    shape = policy.shape(schedule, known, len(batch.micro_batches))
    plan = plan_memory(schedule, shape, policy, known, batch).peak_bytes()["device"]
    with EmulatedDevice(None, None, 1 << 30) as device:
        prompts = make_prompts(*lengths)
        engine.run(model, prompts, schedule, policy, max_new_tokens=new, device=device, seed=1, **how)
        assert device.memory.usage.peak_bytes <= plan + ALIGNED_BYTES


def check_stream(model, schedule, places, lengths, size, new, how):
    """With one or two places for micro-batches, planned as the engine plans: with room for whole prompts of one."""
    workload = Workload("requests", tuple(sorted(lengths, reverse=True)), new, sampled=bool(how), in_order=True)
    policy = Policy.usual(schedule, min(len(lengths), 2 * size), size, **places)
    problem = Problem.of(described(model), Hardware.load("t4"), workload)
    setup = StreamSetup(problem, schedule, policy, size * max(lengths))
    with EmulatedDevice(None, None, 1 << 30) as device:
        asked = {"max_new_tokens": new, "device": device, "seed": 1, **how}
        outputs = list(engine.stream(model, make_prompts(*lengths), schedule, setup.policy, **asked))
        assert [one.error for one in outputs] == [""] * len(lengths)
        assert device.memory.usage.peak_bytes <= setup.memory.peak_bytes()["device"] + ALIGNED_BYTES


HOW = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@given(runs())
@settings(max_examples=12, **HOW)
def test_the_peak_of_a_random_run_is_within_its_plan(run):
    check(run)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(20))
def test_so_is_that_of_a_thousand(part):
    @seed(part)
    @given(runs())
    @settings(max_examples=50, **{**HOW, "derandomize": False})
    def of_part(run):
        check(run)

    of_part()
