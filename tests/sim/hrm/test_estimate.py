"""HRM's own prediction of a setup against the paper's optimizer, and against arithmetic done by hand."""

import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import decode_tokens_per_s, few_layers, made_setup, preset, round_machine

from sim.cost import Setup
from sim.hrm import hrm_tokens_per_s
from sim.hrm.estimate import MoEDims, PolicyNumbers
from sim.problem import Hardware, Policy, Problem, Workload
from sim.schedule import by_name, registered

SETTINGS = settings(deadline=None, derandomize=True, max_examples=12)
GIB = 2**30
DIMS = {
    "mixtral-8x7b": MoEDims(n_layers=32, h1=4096, h2=14336, n_q=32, n_kv=8, n_e=8, k=2),
    "mixtral-8x22b": MoEDims(n_layers=56, h1=6144, h2=16384, n_q=48, n_kv=8, n_e=8, k=2),
    "dbrx": MoEDims(n_layers=40, h1=6144, h2=10752, n_q=48, n_kv=8, n_e=16, k=4),
}


def estimated(machine, model, size, count, prompt_len, gen_len, schedule="cgopipe", **fields):
    problem = Problem(preset(model), Hardware.load(machine), Workload.fixed(prompt_len, gen_len))
    plan = by_name(schedule)
    return hrm_tokens_per_s(Setup(problem, plan, Policy.usual(plan, size * count, size, **fields)))


@pytest.mark.parametrize(
    ("machine", "model"),
    [
        ("gcp-t4", "mixtral-8x7b"),
        ("gcp-l4", "mixtral-8x7b"),
        ("gcp-2xt4", "mixtral-8x22b"),
        ("gcp-4xt4", "mixtral-8x22b"),
        ("gcp-2xt4", "dbrx"),
    ],
)
@given(
    size=st.integers(1, 3000),
    count=st.integers(1, 40),
    prompt_len=st.integers(1, 2000),
    gen_len=st.integers(2, 256),
    resident=st.integers(0, 7),
)
@SETTINGS
def test_it_is_the_papers_optimizer_on_the_papers_machines(machine, model, size, count, prompt_len, gen_len, resident):
    """At any share of whole experts; the optimizer's shares between are not what a policy can do."""
    hardware, dims = Hardware.load(machine), DIMS[model]
    share = resident / dims.n_e
    numbers = PolicyNumbers(size * count, size, share, prompt_len, gen_len, hardware.num_devices)
    expected = decode_tokens_per_s(dims, numbers, hardware.optimizer)
    ours = estimated(machine, model, size, count, prompt_len, gen_len, experts_on_device=share)
    assert ours == pytest.approx(expected, rel=1e-9)


def test_the_papers_own_example_by_hand():
    """S2, 324×14, prompts of 77, 32 tokens: the link binds; 944.66 tok/s with 0.0559 of the weights resident."""
    link_s = 8 * 6 * 4096 * 14336 / (16 * GIB)
    at_zero = 4536 * 32 / (link_s * 32 * 31)
    assert at_zero == pytest.approx(944.66 * (1 - 0.0559), rel=1e-4)
    assert estimated("gcp-l4", "mixtral-8x7b", 324, 14, 77, 32) == pytest.approx(at_zero, rel=1e-9)
    one_expert = estimated("gcp-l4", "mixtral-8x7b", 324, 14, 77, 32, experts_on_device=0.125)
    assert one_expert == pytest.approx(at_zero / (7 / 8), rel=1e-9)


def test_experts_that_are_not_whole_stay_on_the_host():
    shares = [estimated("gcp-l4", "mixtral-8x7b", 324, 14, 77, 32, experts_on_device=r) for r in (0, 0.0559, 0.124)]
    assert len(set(shares)) == 1


class TestWhatBinds:
    """On the round machine, which has no constants of an optimizer, HRM takes the data sheet's peaks."""

    def test_the_link_at_its_theoretical_rate(self):
        expected = 16 * 4 / (32 * 3 * (8 * 6 * 4096 * 14336 / 32e9))
        assert hrm_tokens_per_s(made_setup()) == pytest.approx(expected, rel=1e-9)

    def test_cpu_attention_over_long_contexts(self):
        setup = made_setup(workload=Workload.fixed(1_000_000, 4))
        moved = 8 * (1_000_004 * 4096 + 2 * 2 * 4096)
        flops = 8 * 2 * 1_000_004 * (4096 + 32)
        step_s = 32 * 2 * max(moved / 100e9, flops / 1e12)
        assert hrm_tokens_per_s(setup) == pytest.approx(16 * 4 / (3 * step_s), rel=1e-9)

    def test_cpu_attention_on_slow_cores(self):
        setup = made_setup(machine=round_machine(host__peak=1e8))
        step_s = 32 * 2 * 8 * 2 * 104 * (4096 + 32) / 1e8  # query times key, and the softmax
        assert hrm_tokens_per_s(setup) == pytest.approx(16 * 4 / (3 * step_s), rel=1e-9)

    def test_the_device_when_nothing_is_streamed(self):
        setup = made_setup(experts_on_device=1.0, machine=round_machine(host_memory__bandwidth=1e15, host__peak=1e18))
        ffn_bytes = 8 * 6 * 4096 * 14336 + 8 * 2 * (4096 + 14336)
        assert hrm_tokens_per_s(setup) == pytest.approx(16 * 4 / (3 * 32 * 2 * ffn_bytes / 1e12), rel=1e-9)

    def test_with_attention_on_the_device_the_cache_takes_the_link_too(self):
        link_bytes = 8 * 6 * 4096 * 14336 + 16 * 104 * 4096
        expected = 16 * 4 / (3 * 32 * link_bytes / 32e9)
        assert hrm_tokens_per_s(made_setup("flexgen")) == pytest.approx(expected, rel=1e-9)
        resident = 8 * 6 * 4096 * 14336
        on_device = hrm_tokens_per_s(made_setup("flexgen", kv_on_device=1.0))
        assert on_device == pytest.approx(16 * 4 / (3 * 32 * resident / 32e9), rel=1e-9)

    def test_zero_streams_the_rest_of_the_layer_too(self):
        layer = 8 * 6 * 4096 * 14336 + 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 2 * 4096)
        assert hrm_tokens_per_s(made_setup("zero")) == pytest.approx(8 * 4 / (3 * 32 * layer / 32e9), rel=1e-9)

    def test_devices_multiply_links_of_their_own(self):
        one, two = (hrm_tokens_per_s(made_setup(machine=round_machine(n))) for n in (1, 2))
        assert two == pytest.approx(2 * one, rel=1e-9)

    def test_narrow_weights_halve_what_the_link_carries(self):
        assert hrm_tokens_per_s(made_setup(weight_bits=8)) == pytest.approx(
            2 * hrm_tokens_per_s(made_setup()), rel=1e-9
        )

    def test_a_sliding_window_shortens_the_context(self):
        long = {"workload": Workload.fixed(1_000_000, 4)}
        windows = [few_layers("mixtral-8x7b", 2), few_layers("mixtral-8x7b", 2, window=1000)]
        full, half_sliding = (hrm_tokens_per_s(made_setup(model=model, **long)) for model in windows)
        assert half_sliding > 1.5 * full


@pytest.mark.parametrize("name", sorted(registered()))
def test_without_a_decode_step_there_is_nothing_to_estimate(name):
    assert hrm_tokens_per_s(made_setup(name, workload=Workload.fixed(100, 1))) is None
    assert hrm_tokens_per_s(made_setup(name, workload=Workload.fixed(100, 2))) > 0


@pytest.mark.parametrize("model", ["qwen3-30b-a3b", "deepseek-v2-lite", "gpt-oss-120b"])
@pytest.mark.parametrize("name", sorted(registered()))
def test_it_has_an_answer_for_every_model(model, name):
    assert 0 < hrm_tokens_per_s(made_setup(name, model=preset(model))) < 1e6
