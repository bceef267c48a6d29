"""Work that depends on what tokens ask for: modules that hooks copy, and experts of the host."""

from dataclasses import replace

import pytest

from sim.cost import Setup
from sim.problem import Hardware, Model, Problem, Quantity, Routing, Widths, Workload
from sim.schedule import CPU, GPU, H2D, NONE, WHOLE, Op, Task

MIXTRAL = Model.load("mixtral-8x7b")


def setup_of(schedule, requests=1, machine="rtx4090", model=MIXTRAL, routing=None, **policy):
    asked = Problem(model, Hardware.load(machine), Workload.fixed(64, 8), routing or Routing())
    return Setup.of(asked, schedule, batch_size=requests, micro_batch_size=requests, **policy)


def load(setup, step=1):
    return setup.costs()(Task(0, Op.LOAD_WEIGHTS_PAGEABLE, H2D, step, 3, NONE, WHOLE))


class TestHooks:
    @pytest.mark.parametrize("requests", [1, 4, 64])
    def test_hooks_copy_the_experts_that_tokens_use_and_all_else(self, requests):
        layer = MIXTRAL.layers[3]
        expected = layer.experts_touched(requests) * layer.expert_bytes(16) + layer.non_expert_bytes(Widths())
        assert load(setup_of("accelerate", requests)).bytes == pytest.approx(expected, rel=1e-9)

    def test_prompts_of_many_tokens_need_every_expert(self):
        layer = MIXTRAL.layers[3]
        whole = layer.experts_bytes(16) + layer.non_expert_bytes(Widths())
        assert load(setup_of("accelerate"), step=0).bytes == pytest.approx(whole, rel=1e-6)

    def test_each_module_is_a_copy_of_its_own(self):
        """Two experts of three matrices, four projections, the router, two norms."""
        setup = setup_of("accelerate")
        machine = setup.problem.hardware
        later = machine.with_value("link.latency", machine.link.latency_s + 1e-3)
        slower = Setup(replace(setup.problem, hardware=later), setup.schedule, setup.policy)
        gained = load(slower).duration_ns - load(setup).duration_ns
        assert gained == pytest.approx((2 * 3 + 7) * 1e6, rel=1e-6)

    def test_other_systems_copy_whole_layers(self):
        layer = MIXTRAL.layers[3]
        whole = layer.experts_bytes(16) + layer.non_expert_bytes(Widths())
        assert load(setup_of("zero")).bytes == whole


def host_experts(setup):
    return setup.costs()(Task(0, Op.HOST_EXPERTS, CPU, 1, 3, 0, NONE))


class TestExpertsOfTheHost:
    def test_several_devices_share_what_the_host_computes(self):
        one = host_experts(setup_of("cpu-experts", experts_on_host=1.0))
        two = host_experts(setup_of("cpu-experts", machine="gcp-2xt4", experts_on_host=1.0))
        assert two.bytes == pytest.approx(one.bytes / 2, rel=1e-6)
        assert two.flops == pytest.approx(one.flops / 2, rel=1e-6)

    def test_a_fixed_time_is_paid_as_often_as_tokens_ask_the_host(self):
        """With most of the traffic on the device, few layers have a round trip."""
        model = Model.load("qwen3-next-80b-a3b")
        machine = Hardware.load("rtx4090").with_value("host.launch_latency", 1.0)

        def fixed_s(exponent):
            asked = Problem(model, machine, Workload.fixed(64, 8), Routing(exponent))
            given = {"experts_on_device": 0.8, "experts_on_host": 0.2}
            costs = Setup.of(asked, "cpu-experts", batch_size=1, micro_batch_size=1, **given).costs()
            tasks = [Task(0, Op.HOST_EXPERTS, CPU, 1, layer, 0, NONE) for layer in range(model.num_layers)]
            return sum(costs(task).duration_ns * 1e-9 for task in tasks) / len(tasks)

        assert fixed_s(0.0) == pytest.approx(1 - 0.8**10, abs=0.05)
        assert fixed_s(1.5) < 0.3


class TestPackedExpertsOfTheHost:
    """Of 4.5 bits: their bytes at the speed of memory, unless it takes longer to unpack them meanwhile."""

    def times(self, gigabytes_per_s, requests=1, **policy):
        setup = setup_of("cpu-experts", requests, experts_on_host=1.0, **policy)
        rate = Quantity(gigabytes_per_s, "GB/s")
        machine = setup.problem.hardware
        told = replace(machine, host=replace(machine.host, unpack_bytes_per_s=rate))
        return host_experts(setup), host_experts(
            Setup(replace(setup.problem, hardware=told), setup.schedule, setup.policy)
        )

    def test_at_their_own_rate_where_that_is_less(self):
        without, known = self.times(20, weight_bits=4.5)
        _, slower = self.times(10, weight_bits=4.5)
        made = 2 * MIXTRAL.layers[3].expert_bytes(16)
        assert (slower.duration_ns - known.duration_ns) * 1e-9 == pytest.approx(made / 20e9, rel=1e-6)
        assert (known.bound, known.bytes, known.flops) == ("unpacking", without.bytes, without.flops)
        assert known.duration_ns > without.duration_ns

    def test_at_the_speed_of_memory_or_arithmetic_where_unpacking_is_faster(self):
        assert len(set(self.times(1e6, weight_bits=4.5))) == 1
        assert len(set(self.times(200, requests=256, weight_bits=4.5))) == 1, "unpacked once for many tokens"

    @pytest.mark.parametrize("policy", [{}, {"weight_bits": 16.0}])
    def test_nothing_where_nothing_is_packed(self, policy):
        assert len(set(self.times(1, **policy))) == 1


class TestPackedExpertsOfTheDevice:
    def test_they_are_unpacked_and_then_read_as_wide_as_they_are_computed(self):
        narrow, wide = (setup_of("hybrid", 8, experts_on_device=0.5, weight_bits=bits) for bits in (4.5, 16.0))
        rate = Quantity(100, "GB/s")
        told = replace(narrow.problem.hardware, device=replace(narrow.problem.hardware.device, unpack_bytes_per_s=rate))
        narrow = Setup(replace(narrow.problem, hardware=told), narrow.schedule, narrow.policy)
        task = Task(0, Op.DEVICE_EXPERTS, GPU, 1, 3, 0, NONE)
        longer = (narrow.costs()(task).duration_ns - wide.costs()(task).duration_ns) * 1e-9
        layer = MIXTRAL.layers[3]
        used = layer.experts_touched(8)
        assert longer == pytest.approx(used * layer.expert_bytes(16) / 100e9, rel=1e-4)
