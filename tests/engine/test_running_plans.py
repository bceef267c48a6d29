"""A policy that the engine plans for requests at hand: it fits in every batch, whichever requests come together."""

import contextlib
import random
from dataclasses import replace

import pytest
from engine_models import make, make_prompts, reference

import engine
from engine.calibration import described
from engine.device import EmulatedDevice
from engine.generation import as_cut
from engine.running import plan
from sim.cost import plan_memory
from sim.planning import NothingFitsError, best_policy
from sim.problem import Hardware, Problem
from sim.schedule import by_name, registered

CAPACITY_BYTES = 1_500_000
NEW = 3


def small_machine(capacity_bytes=CAPACITY_BYTES):
    machine = Hardware.load("gcp-t4")
    memory = replace(machine.device_memory, capacity_bytes=capacity_bytes)
    return replace(machine, device_memory=memory)


def uneven_lengths(seed, count=60):
    drawn = random.Random(seed)
    return [min(60, 1 + int(drawn.lognormvariate(2.0, 1.0))) for _ in range(count)]


def needed_bytes(model, name, policy, lengths, **how):
    known, schedule = described(model), by_name(name)
    batch = replace(as_cut(sorted(lengths, reverse=True), policy.micro_batch_size, NEW), **how)
    shape = policy.shape(schedule, known, len(batch.micro_batches))
    return plan_memory(schedule, shape, policy, known, batch).peak_bytes()["device"]


@pytest.mark.parametrize("sampled", [False, True], ids=["highest", "drawn"])
@pytest.mark.parametrize("name", ["cgopipe", "flexgen", "hybrid"])
def test_every_batch_fits(name, sampled):
    model, lengths = make("mixtral"), uneven_lengths(1)
    policy = plan(model, small_machine(), by_name(name), lengths, NEW, sampled=sampled).policy
    starts = range(0, len(lengths), policy.batch_size)
    batches = [lengths[start : start + policy.batch_size] for start in starts]
    most = max(needed_bytes(model, name, policy, batch, sampled=sampled) for batch in batches)
    assert 0.3 * CAPACITY_BYTES < most <= CAPACITY_BYTES


def test_the_plan_of_requests_that_are_drawn_leaves_room_for_it():
    model, lengths, name = make("mixtral", vocab_size=2000), [8] * 64, "cgopipe"
    found = [plan(model, small_machine(), by_name(name), lengths, NEW, sampled=sampled) for sampled in (False, True)]
    usual, drawn = (one.policy for one in found)
    assert usual != drawn
    assert needed_bytes(model, name, usual, lengths[: usual.batch_size], sampled=True) > CAPACITY_BYTES


@pytest.mark.parametrize("capacity_bytes", [CAPACITY_BYTES // 3, 30 * CAPACITY_BYTES], ids=["little", "much"])
@pytest.mark.parametrize("name", sorted(registered()))
def test_what_the_planner_chooses_the_engine_runs(name, capacity_bytes):
    """Every field of a policy, of any schedule; and the tokens are the model's."""
    model, prompts, schedule = make("mixtral"), make_prompts(*[7] * 24), by_name(name)
    problem = Problem.of(described(model), small_machine(capacity_bytes), prompt_len=7, gen_len=NEW)
    with contextlib.suppress(*[NothingFitsError] * (capacity_bytes < CAPACITY_BYTES)):
        policy = best_policy(problem, schedule, num_requests=24).best.setup.policy
        mine = prompts[: policy.batch_size]
        with EmulatedDevice(None, None, capacity_bytes) as device:
            result = engine.run(model, mine, schedule, policy, max_new_tokens=NEW, device=device)
        assert result.sequences == reference(model, mine, len(mine), NEW)
