"""The paper's policy search against the policies that its authors published, and against a search in plain loops."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import few_layers, preset, round_machine

from sim.cost import Setup
from sim.hrm import search_policies
from sim.hrm.estimate import PolicyNumbers, cpu_memory_bytes, dims_of, gpu_memory_bytes
from sim.hrm.search import constants_of, micro_batch_sizes
from sim.problem import Hardware, Model, Problem, Workload
from sim.schedule import Place, by_name
from traces.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


def published(machine, *, model="mixtral-8x7b", workload="mtbench", gen_len=32, padded=False, **how):
    asked = Workload.load(workload).with_(gen_len=gen_len, padded=padded)
    return search_policies(preset(model), Hardware.load(machine), asked, **how)


class TestPublishedPolicies:
    """MoE-Lightning's artifact (branch asplos25): its optimizer's output, and the policies of its runs."""

    def test_the_optimizers_printed_choice_for_s2(self):
        choice = published("gcp-l4")
        assert str(choice.policy) == "324×14"
        assert choice.policy.experts_on_device == pytest.approx(0.0559, abs=5e-5)
        assert choice.layer_s == pytest.approx(0.1549, abs=5e-5)
        assert choice.tokens_per_s == pytest.approx(944.66, abs=5e-3)
        assert choice.bottleneck == "link"

    @pytest.mark.parametrize(("gen_len", "policy"), [(32, "164×19"), (64, "164×19"), (128, "164×14"), (256, "100×15")])
    def test_s1_unpadded(self, gen_len, policy):
        assert str(published("gcp-t4", gen_len=gen_len).policy) == policy

    @pytest.mark.parametrize("gen_len", [32, 64, 128, 256])
    def test_s1_padded(self, gen_len):
        assert str(published("gcp-t4", gen_len=gen_len, padded=True).policy) == "36×14"

    def test_s2_unpadded(self):
        assert str(published("gcp-l4", gen_len=128).policy) == "164×16"

    @pytest.mark.parametrize(("gen_len", "policy"), [(32, "68×16"), (128, "68×13")])
    def test_s2_padded(self, gen_len, policy):
        assert str(published("gcp-l4", gen_len=gen_len, padded=True).policy) == policy

    @pytest.mark.parametrize("gen_len", [32, 64, 128, 256])
    def test_s6(self, gen_len):
        choice = published("gcp-2xt4", model="mixtral-8x22b", gen_len=gen_len, padded=True)
        assert str(choice.policy) == "36×7"

    def test_synthetic_reasoning_on_s1(self):
        assert str(published("gcp-t4", workload="helm-synthetic", gen_len=50, padded=True).policy) == "36×26"

    def test_synthetic_reasoning_on_s2_came_from_the_other_form_of_the_memory_of_prefill(self):
        asked = {"workload": "helm-synthetic", "gen_len": 50, "padded": True}
        assert str(published("gcp-l4", **asked, whole_batch_in_prefill=True).policy) == "100×15"
        assert str(published("gcp-l4", **asked).policy) == "100×16"

    @pytest.mark.parametrize("gib_per_s", [76, 100])
    def test_either_of_the_two_cpu_bandwidths_gives_the_same(self, gib_per_s):
        machine = Hardware.load("gcp-l4").with_value("optimizer.cpu_bandwidth", gib_per_s * 2**30)
        choice = search_policies(preset("mixtral-8x7b"), machine, Workload.load("mtbench").with_(gen_len=32))
        assert str(choice.policy) == "324×14"


def by_plain_loops(model, machine, prompt_len, gen_len, whole):
    """The artifact's rule for one device, written out: (μ, number of micro-batches, r_w) and tokens/s.

    For each pair the layer's time falls with r_w, so the largest that fits is the best.
    """
    best, best_rate, size = None, 0.0, 1
    while True:
        previous, count = 0.0, 1
        while (share := _largest_share(model, machine, prompt_len, gen_len, whole, size, count)) is not None:
            seconds = float(f"{_layer_s(model, machine, prompt_len + gen_len, size, count, share):.8g}")
            rate = size * count * gen_len / (seconds * (gen_len - 1) * model.num_layers)
            if rate < previous:
                break
            if rate >= best_rate:
                best, best_rate = (size, count, share), rate
            previous, count = rate, count + 1
        if count == 1:
            return best, best_rate
        size += 1 if size < 4 else 32


def _letters(model):
    """h1, h2, h_kv, k, n_q, bytes of a layer's experts."""
    layer = model.layers[0]
    attention, width = layer.attention, layer.expert.intermediate_size
    kv = layer.hidden_size * attention.num_kv_heads // attention.num_query_heads
    experts = 6 * layer.hidden_size * width * layer.num_experts
    return layer.hidden_size, width, kv, layer.top_k, attention.num_query_heads, experts


def _largest_share(model, machine, s, gen_len, whole, size, count):
    """r_w, or None if the pair does not fit."""
    h1, h2, kv, k, _, experts = _letters(model)
    layers, batch, constants = model.num_layers, size * count, machine.optimizer
    prefill = 4 * h1 * size * s + 2 * h1 * batch * s if whole else 8 * h1 * size * s
    home = 4 * h1 * (h1 + kv) * layers + max(prefill + 8 * s * kv * size, 4 * h1 * batch)
    work = 2.4 * (size * k * h1 * s + size * k * 3 * h2 * s)
    room = 0.86 * constants.gpu_memory_bytes - home - work - 2 * experts
    share = min(room / (experts * (layers - 2)), 1.0)
    host = 4 * (s + gen_len) * kv * batch * layers + 2 * h1 * batch * s + experts * (1 - share) * (layers + 2)
    return share if share >= 0 and host <= 0.8 * constants.cpu_memory_bytes else None


def _layer_s(model, machine, context, size, count, share):
    h1, h2, kv, k, n_q, experts = _letters(model)
    constants = machine.optimizer
    gpu = (6 * size * h1 * h2 * k, 2 * size * (h1 + h2) + experts)
    cpu = (2 * size * context * (h1 + n_q), 4 * size * h1 + 4 * size * context * kv)
    gpu_s = max(gpu[0] / constants.gpu_peak_flops_per_s, gpu[1] / constants.gpu_bandwidth_bytes_per_s)
    cpu_s = max(cpu[0] / constants.cpu_peak_flops_per_s, cpu[1] / constants.cpu_bandwidth_bytes_per_s)
    return max(experts * (1 - share) / constants.link_bytes_per_s, count * gpu_s, count * cpu_s)


@settings(max_examples=20, deadline=None)
@given(
    prompt_len=st.integers(20, 600),
    gen_len=st.integers(2, 300),
    whole=st.booleans(),
    factors=st.fixed_dictionaries(
        {
            "gpu_memory": st.floats(0.7, 3),
            "cpu_memory": st.floats(0.7, 3),
            "gpu_bandwidth": st.floats(0.2, 5),
            "gpu_peak": st.floats(0.01, 2),
            "cpu_bandwidth": st.floats(0.02, 2),
            "cpu_peak": st.floats(0.02, 2),
            "link": st.floats(0.2, 5),
        }
    ),
)
def test_it_is_the_search_in_plain_loops(prompt_len, gen_len, whole, factors):
    machine = Hardware.load("gcp-l4")
    for name, factor in factors.items():
        machine = machine.scaled(f"optimizer.{name}", factor)
    model, asked = preset("mixtral-8x7b"), Workload.fixed(prompt_len, gen_len)
    expected, rate = by_plain_loops(model, machine, prompt_len, gen_len, whole)
    if expected is None:
        with pytest.raises(InputError, match=r"no policy fits gcp-l4: one request is short of .* GB of"):
            search_policies(model, machine, asked, whole_batch_in_prefill=whole)
        return
    choice = search_policies(model, machine, asked, whole_batch_in_prefill=whole)
    assert (choice.policy.micro_batch_size, choice.policy.num_micro_batches) == expected[:2]
    assert choice.policy.experts_on_device == pytest.approx(expected[2], abs=1e-9)
    assert choice.tokens_per_s == pytest.approx(rate, rel=1e-12)


class TestAttentionOnTheDevice:
    """The other choice in the case study of figure 10: 2x A100, Mixtral 8x7B, prompts of 512 tokens."""

    @staticmethod
    def share_on_host(link, cpu, gen_len=32):
        """Bytes of experts on the host, as a share, and where attention runs; for multiples of the lowest rates."""
        machine = Hardware.load(ROOT / "docs" / "2xa100.toml").scaled("optimizer.link", link)
        for name in ("cpu_memory", "cpu_bandwidth", "cpu_peak"):
            machine = machine.scaled(f"optimizer.{name}", cpu)
        asked = Workload.fixed(512, gen_len).with_(padded=True)
        places = [search_policies(preset("mixtral-8x7b"), machine, asked, attention=place) for place in Place]
        best = max(places, key=lambda choice: choice.tokens_per_s)
        return 1 - best.policy.experts_on_device, best.policy.attention

    @pytest.mark.parametrize("gen_len", [32, 128])
    def test_a_faster_link_takes_more_weights_off_the_device(self, gen_len):
        shares, places = zip(*(self.share_on_host(link, 1, gen_len) for link in (1, 2, 3, 4, 5)), strict=True)
        assert list(shares) == sorted(shares)
        assert shares[-1] > shares[0] + 0.05
        assert {*places} == {Place.GPU}

    @pytest.mark.parametrize("gen_len", [32, 128])
    def test_a_slow_host_never_attends_and_a_fast_one_does(self, gen_len):
        assert {self.share_on_host(link, cpu, gen_len)[1] for link in (1, 5) for cpu in (1, 4, 6)} == {Place.GPU}
        assert {self.share_on_host(link, 10, gen_len)[1] for link in (1, 5)} == {Place.CPU}

    def test_by_hand(self):
        machine, asked = Hardware.load("gcp-l4"), Workload.fixed(50, 6)
        choice = search_policies(preset("mixtral-8x7b"), machine, asked, attention=Place.GPU)
        size, count, constants = choice.policy.micro_batch_size, choice.policy.num_micro_batches, machine.optimizer
        experts = 2 * size * (4096 + 14336) + 2_818_572_288
        attention = 2 * (2 * size * 4096 + size * 56 * 2048)
        assert choice.times.gpu_s == pytest.approx(count * (experts + attention) / constants.gpu_bandwidth_bytes_per_s)
        assert choice.times.cpu_s == 0
        assert (choice.policy.attention, choice.policy.kv_on_device) == (Place.GPU, 1.0)

    def test_the_cache_moves_from_host_to_device(self):
        on_cpu = PolicyNumbers(64.0, 8.0, 0.0, prompt_len=1, gen_len=99)
        on_gpu = replace(on_cpu, attention_on_gpu=True)
        dims = dims_of(preset("mixtral-8x7b"))
        cache = 64 * 100 * 4096 * 32
        assert cpu_memory_bytes(dims, on_cpu) - cpu_memory_bytes(dims, on_gpu) == cache
        assert gpu_memory_bytes(dims, on_gpu) - gpu_memory_bytes(dims, on_cpu) == cache


class TestWithoutThePapersConstants:
    def test_peaks_and_capacities_stand_in_and_links_add_up(self):
        constants = constants_of(round_machine(2))
        assert constants.gpu_memory_bytes == 64e9
        assert constants.gpu_bandwidth_bytes_per_s == 1e12
        assert constants.gpu_peak_flops_per_s == 100e12
        assert constants.cpu_memory_bytes == 1e12
        assert constants.cpu_bandwidth_bytes_per_s == 100e9
        assert constants.cpu_peak_flops_per_s == 1e12
        assert constants.link_bytes_per_s == 64e9

    def test_the_same_numbers_as_a_block_give_the_same_policy(self):
        machine, asked = round_machine(), Workload.fixed(100, 32)
        block = replace(machine, optimizer=constants_of(machine))
        assert search_policies(preset("mixtral-8x7b"), machine, asked) == search_policies(
            preset("mixtral-8x7b"), block, asked
        )

    @pytest.mark.parametrize("name", sorted({*Model.presets()} - {"deepseek-v3"}))  # 1.3 TB in fp16
    def test_it_has_an_answer_for_every_preset(self, name):
        choice = search_policies(preset(name), round_machine(), Workload.load("mtbench"))
        assert 0 <= choice.policy.experts_on_device <= 1
        assert choice.candidates > 1
        assert choice.layer_s == max(choice.times.link_s, choice.times.gpu_s, choice.times.cpu_s) > 0


def test_the_policy_is_one_of_cgopipes():
    choice = published("gcp-l4")
    problem = Problem(preset("mixtral-8x7b"), Hardware.load("gcp-l4"), Workload.load("mtbench").with_(gen_len=32))
    setup = Setup(problem, by_name("cgopipe"), choice.policy)
    assert setup.shape.num_micro_batches == choice.policy.num_micro_batches
    assert choice.policy.batch_size == 324 * 14


def test_micro_batch_sizes():
    sizes = micro_batch_sizes()
    assert [next(sizes) for _ in range(8)] == [1, 2, 3, 4, 36, 68, 100, 132]


def test_what_it_cannot_rate():
    machine, asked = round_machine(), Workload.fixed(100, 32)
    with pytest.raises(InputError, match="has 2 layers; it needs at least 3"):
        search_policies(few_layers("mixtral-8x7b", 2), machine, asked)
    with pytest.raises(InputError, match="gen_len: 1 leaves no decode step"):
        search_policies(preset("mixtral-8x7b"), machine, Workload.fixed(100, 1))
    with pytest.raises(InputError, match="of host memory"):
        search_policies(preset("mixtral-8x22b"), machine.with_value("host_memory.capacity", 1e9), asked)
    with pytest.raises(InputError, match="of device memory"):
        search_policies(preset("mixtral-8x22b"), machine.with_value("device_memory.capacity", 1e9), asked)


def test_a_model_without_experts_is_refused():
    model = preset("mixtral-8x7b")
    dense = tuple(replace(layer, num_experts=0, top_k=0, expert=None) for layer in model.layers)
    with pytest.raises(InputError, match="no experts"):
        search_policies(replace(model, layers=dense), round_machine(), Workload.fixed(100, 32))
