"""What a device has room for: a model cut down to its first layers for a while, and runs cut down to fewer tokens.

A few layers are enough to measure how long each op takes, and quick to run.
"""

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from engine.calibration.measure.runs import Condition
from engine.model import Anatomy
from sim.cost import plan_memory
from sim.problem import Model

USUAL_LAYERS = 6
"""Layers that a calibration runs: several measurements of each op in a step."""

ROOM_SHARE = 0.7
"""Share of the device's memory that the weights of a calibration may take."""


def layers_to_measure(model: PreTrainedModel, device_bytes: int) -> int:
    """How many layers to run: the first ones, one with experts at least, and no more than fit the device."""
    anatomy = Anatomy.of(model)
    sizes = [sum(one.tensor.nbytes for one in anatomy.parameters(i)) for i in range(len(anatomy.layers))]
    least = 1 + next(i for i, experts in enumerate(anatomy.experts) if experts)
    rest = sum(parameter.nbytes for parameter in model.parameters()) - sum(sizes)
    count = max(least, min(USUAL_LAYERS + least - 1, len(sizes)))
    while count > least and rest + sum(sizes[:count]) > ROOM_SHARE * device_bytes:
        count -= 1
    return count


@contextlib.contextmanager
def keep_first_layers(model: PreTrainedModel, count: int) -> Iterator[None]:
    """While entered, the model has only its first `count` layers, and its configuration says so."""
    anatomy, config = Anatomy.of(model), model.config.get_text_config(decoder=True)
    path, _, name = anatomy.path.rpartition(".")
    holder = model.get_submodule(path)
    whole, before = getattr(holder, name), dict(vars(config))
    setattr(holder, name, nn.ModuleList(whole[:count]))
    config.num_hidden_layers = count
    for key in ("layer_types", "mlp_layer_types"):
        if isinstance(before.get(key), list):
            setattr(config, key, before[key][:count])
    try:
        yield
    finally:
        setattr(holder, name, whole)
        vars(config).update(before)


def runs_that_fit(planned: Sequence[Condition], model: Model, device_bytes: int) -> list[Condition]:
    """The runs, with fewer requests and then shorter prompts where the memory plan says that a device is too small.

    Each is there once. One that fits in no way stays as small as it can be.
    """
    return list(dict.fromkeys(_that_fits(one, model, device_bytes) for one in planned))


def _that_fits(condition: Condition, model: Model, device_bytes: int) -> Condition:
    while _needed_bytes(condition, model) > device_bytes:
        size, width = condition.size
        if (size, width) == (1, 1):
            break
        condition = condition.of_size(size // 2, width) if size > 1 else condition.of_size(size, width // 2)
    return condition


def _needed_bytes(condition: Condition, model: Model) -> int:
    given = condition.schedule, condition.shape(model), condition.policy, model, condition.batch
    return plan_memory(*given).peak_bytes()["device"]
