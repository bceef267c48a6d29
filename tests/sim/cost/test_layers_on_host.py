"""Layers that run on the host whole: what they take there, and what they spare the device."""

from dataclasses import replace

import pytest
from sim_examples import made_setup, one_task, preset, round_machine

from sim.problem import Policy, Widths
from sim.schedule import CPU, MemoryPart, Op, PipelineShape, Place, Tier, by_name
from sim.simulation import predict
from traces.errors import InputError

ROOMY = round_machine(device_memory__capacity=100e9)


def some(layers, schedule="n-cpu-moe", **fields):
    fields = {"experts_on_device": 1.0} | fields if schedule == "n-cpu-moe" else fields
    return made_setup(schedule, machine=ROOMY, layers_on_host=layers, **fields)


class TestMemory:
    def test_weights_and_cache_of_a_layer_on_the_host_cost_no_device_memory(self):
        none, four = some(None).memory, some((0, 4)).memory
        for part in (MemoryPart.NON_EXPERTS, MemoryPart.RESIDENT_EXPERTS, MemoryPart.KV_CACHE):
            assert four.device[part] == pytest.approx(none.device[part] * 28 / 32, rel=1e-9)
        assert four.host[MemoryPart.KV_CACHE] == none.device[MemoryPart.KV_CACHE] - four.device[MemoryPart.KV_CACHE]
        experts = none.device[MemoryPart.RESIDENT_EXPERTS] - four.device[MemoryPart.RESIDENT_EXPERTS]
        assert four.host[MemoryPart.HOST_EXPERTS] == experts

    def test_with_all_of_them_there_the_device_has_little_more_than_the_head(self):
        plan = some((0, 32)).memory
        assert plan.peak_bytes()[Tier.DEVICE] < 2 * plan.device[MemoryPart.EMBEDDING_AND_HEAD]


class TestCosts:
    def test_a_layer_of_one_token_takes_what_its_weights_take_to_be_read(self):
        setup = some((0, 4), micro_batch_size=1)
        layer = preset("mixtral-8x7b").layers[0]
        cost = setup.costs()(one_task(Op.HOST_LAYER, layer=0)._replace(lane=CPU))
        experts, others = 2 * layer.expert_bytes(16) / 70e9, layer.non_expert_bytes(Widths()) / 90e9
        assert cost.duration_ns == pytest.approx((experts + others) * 1e9, rel=0.01)

    def test_it_grows_with_the_context(self):
        costs = some((0, 4)).costs()
        first, last = (costs(one_task(Op.HOST_LAYER, step=step)._replace(lane=CPU)) for step in (1, 3))
        assert last.duration_ns > first.duration_ns

    @pytest.mark.parametrize("schedule", ["n-cpu-moe", "hybrid"])
    def test_both_paths_of_the_simulator_agree(self, schedule):
        for layers in ((0, 4), (8, 16), (30, 32), (0, 32)):
            setup = some(layers, schedule)
            assert predict(setup, compiled=True).decode_s == predict(setup, compiled=False).decode_s


class TestPolicy:
    def test_shares_are_of_the_other_layers(self):
        splits = some((0, 4), experts_on_device=0.5).placement.splits
        assert [split.layer_on_host for split in splits] == [True] * 4 + [False] * 28
        assert [split.resident for split in splits] == [0] * 18 + [8] * 14

    def test_other_schedules_refuse(self):
        with pytest.raises(InputError, match="layers_on_host: \\(0, 4\\) is not what cgopipe does: leave it out"):
            Policy(8, 8, layers_on_host=(0, 4)).check_places(by_name("cgopipe"))

    def test_beside_attention_of_some_micro_batches_on_the_device_it_is_refused(self):
        policy = Policy(8, 2, "cpu", layers_on_host=(0, 4), attention_on_device=0.5)
        with pytest.raises(InputError, match=r"attention_on_device: 0\.5 with layers_on_host, which keep"):
            policy.check_places(by_name("hybrid"))

    @pytest.mark.parametrize("field", ["num_prompts", "attending_on_device", "defers_experts", "offloads_hidden"])
    def test_what_does_not_go_beside_it_is_refused(self, field):
        shape = PipelineShape(4, 2, 1, Place.CPU, (False,) * 4, offloads_hidden=False, layers_on_host=(1, 2))
        with pytest.raises(InputError, match=f"{field}: 1 beside layers_on_host, which"):
            replace(shape, **{field: 1})

    def test_it_is_told_where_it_is_given(self):
        assert Policy(8, 8, layers_on_host=(0, 4)).to_dict()["layers_on_host"] == [0, 4]
        assert "layers_on_host" not in Policy(8, 8).to_dict()


def test_devices_that_divide_layers_work_one_after_the_other():
    """Two hold what one would, and are no faster."""
    one, two = (made_setup("n-cpu-moe", machine=m, experts_on_device=1.0) for m in (ROOMY, _two()))
    assert predict(two).decode_s == predict(one).decode_s
    whole = one.memory.device[MemoryPart.RESIDENT_EXPERTS]
    assert two.memory.device[MemoryPart.RESIDENT_EXPERTS] == whole // 2


def _two():
    return round_machine(2, device_memory__capacity=100e9)
