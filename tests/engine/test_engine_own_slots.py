"""The engine executes a schedule of another package, with slots of its own, like a built-in one."""

import pytest
from covering import covering
from engine_models import PROMPTS, make, reference
from own_slots import TwoAhead, installed  # noqa: F401

import engine
from engine.device import EmulatedDevice
from sim.problem import Policy
from sim.schedule import by_name

NEW = 6


PLACES = [{}, {"kv_on_device": 0.5}, {"kv_on_device": 1.0}, {"pin_weights": True}]


@pytest.mark.parametrize(("places", "size", "layers"), covering(PLACES, (2, 7), (2, 3, 5)), ids=str)
def test_tokens_are_those_of_plain_generate(installed, places, size, layers):  # noqa: F811
    model = make("mixtral", num_hidden_layers=layers)
    policy = Policy.usual(by_name("two-ahead"), len(PROMPTS), size, **places)
    result = engine.run(model, PROMPTS, "two-ahead", policy, max_new_tokens=NEW)
    assert result.sequences == reference(model, PROMPTS, size, NEW)


class Counted(EmulatedDevice):
    """Remembers what was allocated."""

    def __init__(self):
        super().__init__(None, None, 1 << 30)
        self.names = []

    def allocate(self, name, *rest):
        self.names.append(name)
        return super().allocate(name, *rest)


@pytest.mark.parametrize(("schedule", "slots"), [(by_name("zero"), 2), (TwoAhead(), 3)], ids=["zero", "two-ahead"])
def test_as_many_weight_slots_are_taken_as_the_layout_says(schedule, slots):
    with Counted() as device:
        engine.run(make("mixtral"), PROMPTS, schedule, micro_batch_size=7, max_new_tokens=3, device=device)
    assert sum(name.startswith("weight slot") for name in device.names) == slots
