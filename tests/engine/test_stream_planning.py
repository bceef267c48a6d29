"""The policy that the engine chooses for a stream fits as the engine runs it, which takes more than simulated."""

from dataclasses import replace

import pytest
from engine_models import make

from engine.calibration import described
from engine.running.planning import plan_streamed
from sim.admission import BLOCK_TOKENS
from sim.problem import Hardware, Problem, Workload
from sim.schedule import by_name
from sim.simulation import StreamSetup
from traces.errors import InputError

PROMPTS, MOST = [9, 30, 17, 24] * 20, 40


def machine(device_bytes, host_bytes):
    """A T4 with little memory, of which nobody keeps any."""
    small = Hardware.load("t4").with_value("device_memory.capacity", device_bytes)
    return replace(small.with_value("host_memory.capacity", host_bytes), reserve=None)


@pytest.mark.parametrize("host_bytes", [2e6, 3e6])
def test_all_places_have_room_for_the_longest_requests_beside_whole_prompts(host_bytes):
    model, hardware = make("mixtral"), machine(1e9, host_bytes)
    found = plan_streamed(model, hardware, by_name("cgopipe"), PROMPTS, [MOST] * len(PROMPTS))
    policy, longest = found.policy, max(PROMPTS) + MOST - 1
    assert not policy.attention_on_device
    problem = Problem.of(described(model), hardware, Workload("all", tuple(PROMPTS), MOST))
    chunk = policy.micro_batch_size * max(PROMPTS)
    setup = StreamSetup(problem, by_name("cgopipe"), policy, chunk, 1, BLOCK_TOKENS, longest)
    held = sorted((prompt + MOST - 1 for prompt in PROMPTS), reverse=True)[: policy.batch_size]
    assert sum(-(-tokens // BLOCK_TOKENS) for tokens in held) <= setup.num_blocks
    assert found.expected_tokens_per_s > 0


def test_where_nothing_fits_it_says_so():
    with pytest.raises(InputError, match="memory is"):
        plan_streamed(make("mixtral"), machine(1e5, 1e9), by_name("cgopipe"), PROMPTS, [MOST] * len(PROMPTS))
