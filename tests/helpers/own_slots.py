"""A schedule as another package might bring it, with slots of its own, and the pretence that it is installed."""

from dataclasses import replace

import pytest

from sim.schedule import (
    Accesses,
    Buffer,
    By,
    Holds,
    Op,
    Place,
    Schedule,
    SlotLayout,
    System,
    Tier,
    issue,
    next_layer,
    registry,
)


class ThreeSlots(SlotLayout):
    """Three weight slots that take turns; the KV cache of a micro-batch passes through a bounce buffer."""

    def __init__(self, shape, system):
        super().__init__(shape, system)
        self.buffers["weights"] = replace(self.buffers["weights"], turns=3)
        self.buffers["bounce"] = Buffer(Holds.CACHE, By.TURN, 1, Tier.DEVICE)

    def accesses(self, task):
        reads, writes = super().accesses(task)
        bounce = (self.access("bounce", task),)
        if task.op is Op.LOAD_KV:
            return Accesses(reads, (*writes, *bounce))
        if task.op is Op.ATTN and task.step > 0 and self.shape.streams_kv:
            return Accesses((*reads, *bounce), writes)
        return Accesses(reads, writes)


class TwoAhead(Schedule):
    """Weights two layers ahead; attention on the device, each KV cache loaded just before it is needed."""

    name = "two-ahead"
    summary = "weights two layers ahead, in three slots"
    system = System((Place.GPU,))

    def layout(self, shape):
        return ThreeSlots(shape, self.system)

    def prefill(self, shape, more):
        yield from super().prefill(shape, more)
        yield from self.load_layer(shape, *next_layer(shape, 1, 0, more=False) if more else (-1, 0))

    def decode(self, shape, step, more):
        for layer in range(shape.num_layers):
            following = next_layer(shape, step, layer, more)
            yield from self.load_layer(shape, *self.after(shape, step, *following, more))
            for j in range(shape.num_micro_batches):
                if shape.streams_kv:
                    yield issue(Op.LOAD_KV, step, layer, j)
                yield from self.attend_on_gpu(step, layer, j)
                yield from self.finish_layer(shape, step, layer, j)
                if shape.streams_kv:
                    yield issue(Op.STORE_KV, step, layer, j)

    def after(self, shape, step, next_step, layer, more):
        """The layer behind the next one; none behind the last step."""
        if next_step < 0:
            return -1, 0
        return next_layer(shape, next_step, layer, more and next_step == step)


class Picky(ThreeSlots):
    """The same, by a rule that looks at one layer at a time."""

    def accesses(self, task):
        return super().accesses(task) if task.layer < 2 else super().accesses(task._replace(layer=int(task.layer)))


class Installed:
    """What `importlib.metadata` gives for an entry point of ours."""

    name = "two-ahead"

    @staticmethod
    def load():
        return TwoAhead


@pytest.fixture
def installed(monkeypatch):
    """Pretends that a package with `TwoAhead` is installed."""
    monkeypatch.setattr(registry, "entry_points", lambda group: [Installed])
    registry.registered.cache_clear()
    yield TwoAhead()
    registry.registered.cache_clear()
