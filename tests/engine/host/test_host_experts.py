"""Routed experts on the host: what the module itself gives, whichever of its experts are on the host."""

import contextlib
import hashlib
from pathlib import Path

import pytest
import torch
from engine_models import FAMILIES, make
from hypothesis import given, settings, strategies as st
from other_processors import OTHER_PROCESSORS, made_for
from packed_weights import PlainPacking
from torch import nn
from torch.nn.functional import silu
from transformers.integrations.moe import _default_apply_gate
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from engine.host import BITS, HostExperts, HostThreads, can_run_on_host, turns, vectors
from engine.host.experts import few_tokens, gates, host_experts, kernel, matrix, products
from engine.model import Anatomy, can_split

SPLIT = [family for family in FAMILIES if family not in ("llama4_text", "jetmoe", "doge", "dbrx")]
WIDTHS = (32, 64, 96, 160)
WEIGHTS = (*BITS, 8, 4)
"""Types of weights; or the bits of packed ones."""


class Experts(nn.Module):
    """Says what experts compute, as modules of the library do."""

    def __init__(self, act_fn=silu, is_transposed=False, has_gate=True, has_bias=False):
        super().__init__()
        self.act_fn, self.is_transposed, self.has_gate, self.has_bias = act_fn, is_transposed, has_gate, has_bias

    _apply_gate = _default_apply_gate


class OssExperts(Experts):
    """With a gate and a layout of their own."""

    alpha, limit = 1.702, 7.0
    _apply_gate = GptOssExperts._apply_gate


class Tangled(Experts):
    """With a gate that nobody else has."""

    def _apply_gate(self, both):
        gate, up = both.chunk(2, -1)
        return torch.sin(gate) * up


def random(*shape, seed=0, scale=1.0, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


class Layer:
    """A module of experts, its weights of some kind, and what they are in float64."""

    def __init__(self, kind, num_experts, hidden, between, module=None, bias=False, seed=0):
        self.module = module or Experts()
        self.parameters, self.packings, self.exact = {}, {}, {}
        up = "gate_up_proj" if self.module.has_gate else "up_proj"
        sizes = {up: (between * (2 if self.module.has_gate else 1), hidden), "down_proj": (hidden, between)}
        for n, (name, (output, size)) in enumerate(sizes.items()):
            shape = (size, output) if self.module.is_transposed else (output, size)
            if isinstance(kind, int):
                packing = self.packings[name] = PlainPacking(kind, shape, self.module.is_transposed)
                self.parameters[name] = packing.random(num_experts, seed + n)
                self.exact[name] = torch.empty(num_experts, *shape, dtype=torch.float64)
                packing.unpack(self.parameters[name], self.exact[name])
            else:
                self.parameters[name] = random(num_experts, *shape, seed=seed + n, scale=0.2, dtype=kind)
                self.exact[name] = self.parameters[name].double()
            if bias:
                self.parameters[f"{name}_bias"] = random(num_experts, output, seed=seed + 5 + n)
        self.num_experts = num_experts

    def on_host(self, experts, threads=None):
        return HostExperts.of(self.module, self.parameters, experts, threads, self.packings)

    def reference(self, hidden, index, weights, experts):
        """Pair by pair, in float64."""
        out = torch.zeros(hidden.shape, dtype=torch.float64)
        for token, (row, counts) in enumerate(zip(index.tolist(), weights.double(), strict=True)):
            for expert, count in zip(row, counts, strict=True):
                if expert in experts:
                    out[token] += count * self._one(expert, hidden[token].double())
        return out

    def _one(self, expert, x):
        first, second = self.exact
        between = gates.activation_of(self.module)(self._product(first, expert, x))
        return self._product(second, expert, between)

    def _product(self, name, expert, x):
        weights = self.exact[name][expert]
        made = x @ weights if self.module.is_transposed else weights @ x
        bias = self.parameters.get(f"{name}_bias")
        return made if bias is None else made + bias[expert].double()


def routed(num_experts, tokens, top_k, hidden=32, seed=0):
    """Tokens, the experts of each (one of them perhaps twice), and what each counts."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, num_experts, (tokens, top_k), generator=generator)
    return random(tokens, hidden, seed=seed), index, torch.rand(tokens, top_k, generator=generator)


def check(layer, call, experts, threads=None):
    found = layer.on_host(experts, threads)(*call)
    expected = layer.reference(*call, set(experts))
    scale = float(torch.cat([expected.abs().flatten(), torch.ones(1)]).max())
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=3e-6 * scale)


@pytest.fixture(params=["products", "kernel"])
def way(request, monkeypatch):
    """How experts are computed, however many tokens they have."""
    monkeypatch.setattr(few_tokens, "MOST_TOKENS", 1000 if request.param == "kernel" else -1)
    return request.param


# beside the model's own experts --------------------------------------------------------------------------------------


def experts_of(family):
    """A layer's module of experts and its parameters."""
    anatomy = Anatomy.of(make(family))
    parameters = next(one for one in anatomy.experts if one)
    assert can_split(parameters, anatomy.num_experts)
    return parameters[0].owner, {one.name: one.tensor.detach() for one in parameters}


@pytest.mark.parametrize("family", SPLIT)
def test_all_experts_give_what_the_module_gives(family, way):
    module, parameters = experts_of(family)
    assert can_run_on_host(module)
    call = routed(4, 9, 2)
    with torch.inference_mode():
        expected = module(*call)
    found = HostExperts.of(module, parameters, range(4))(*call)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", SPLIT)
def test_the_gate_of_every_family_is_known(family):
    module, _ = experts_of(family)
    expected = gates.Gate(gates.SILU)
    if family == "gpt_oss":
        expected = gates.Gate(gates.GPT_OSS, is_interleaved=True, alpha=module.alpha, limit=module.limit)
    assert gates.Gate.of(module) == expected


def test_a_module_in_use_is_neither_run_nor_asked_what_a_run_gave_it(way):
    module, parameters = experts_of("mixtral")
    call = routed(4, 9, 2)
    expected = HostExperts.of(module, parameters, range(4))(*call)

    def refused(*_):
        raise AssertionError("the device's")

    own = {name: getattr(module, name) for name in parameters}
    for name in own:
        delattr(module, name)
    module.forward = module._apply_gate = refused
    try:
        assert torch.equal(HostExperts.of(module, parameters, range(4))(*call), expected)
    finally:
        del module.forward, module._apply_gate
        for name, parameter in own.items():
            setattr(module, name, parameter)


def test_weights_are_those_of_the_moment(way):
    layer = Layer(torch.float32, 2, 32, 32)
    call = routed(2, 3, 1)
    experts = layer.on_host([0, 1])
    layer.parameters["down_proj"].zero_()
    assert not experts(*call).any()


# any shape, any type -------------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    module = draw(st.sampled_from([Experts(), Experts(is_transposed=True), OssExperts(is_transposed=True)]))
    num_experts, tokens = draw(st.integers(1, 6)), draw(st.integers(0, 70))
    hidden, between = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(WIDTHS))
    kind, seed = draw(st.sampled_from(WEIGHTS)), draw(st.integers(0, 99))
    layer = Layer(kind, num_experts, hidden, between, module, draw(st.booleans()), seed)
    experts = draw(st.sets(st.integers(0, num_experts - 1)))
    return layer, routed(num_experts, tokens, draw(st.integers(1, 4)), hidden, seed), experts


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([-1, 2, 1000]), st.integers(1, 3))
def test_equals_float64_for_any_shape_and_type(problem, most_tokens, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_tokens, "MOST_TOKENS", most_tokens)
        host_threads = HostThreads(threads)
        check(*problem, host_threads)
        host_threads.close()


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize("module", [Experts(), OssExperts(is_transposed=True)], ids=["rows", "columns"])
def test_every_number_of_tokens_is_in_a_tile(kind, tokens, module):
    layer = Layer(kind, 2, 160, 96, module, bias=True)
    assert layer.on_host([0]).few_tokens
    check(layer, (random(tokens, 160), torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)), [0])


@pytest.mark.parametrize("kind", [torch.float32, 4])
def test_outputs_that_are_no_whole_number_of_blocks(kind):
    for hidden, between in ((544, 288), (288, 544)):
        check(Layer(kind, 2, hidden, between, OssExperts(is_transposed=True)), routed(2, 3, 2, hidden), [0, 1])
    check(Layer(torch.float32, 2, 48, 80), routed(2, 3, 2, 48), [0, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_has_the_type_of_the_tokens_and_is_rounded_once(dtype, way):
    layer = Layer(dtype, 4, 64, 96)
    hidden, index, weights = routed(4, 9, 2, 64)
    hidden, weights = hidden.to(dtype), weights.to(dtype)
    found = layer.on_host(range(4))(hidden, index, weights)
    assert found.dtype == dtype
    exact = layer.reference(hidden, index, weights, set(range(4)))
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_the_result_is_written_where_it_is_wanted_and_nowhere_else(way):
    layer = Layer(torch.float32, 4, 64, 96)
    call = routed(4, 9, 2, 64)
    room = torch.full((11, 128), 7.0)
    out = room[1:10, :64]
    assert layer.on_host(range(4))(*call, out) is out
    assert torch.equal(out, layer.on_host(range(4))(*call))
    out[:] = 7
    assert (room == 7).all()


def test_parts_add_up_to_the_whole(way):
    layer = Layer(torch.bfloat16, 4, 64, 96)
    call = routed(4, 9, 2, 64)
    parts = [layer.on_host(part)(*call) for part in ([1, 3], [0], [], [2])]
    torch.testing.assert_close(sum(parts), layer.on_host(range(4))(*call), rtol=1e-5, atol=1e-5)
    assert not parts[2].any()


def test_what_an_index_calls_no_expert_of_the_host_counts_nothing(way):
    layer = Layer(torch.float32, 4, 32, 32)
    hidden, index, weights = routed(4, 9, 2)
    experts = layer.on_host([0, 2])
    expected = experts(hidden, index, weights)
    for foreign in (-1, 4, 1 << 40):
        changed = torch.where((index == 1) | (index == 3), foreign, index)
        assert torch.equal(experts(hidden, changed, weights), expected)


def test_experts_that_no_token_uses_are_not_read(way):
    layer = Layer(torch.float32, 4, 64, 32)
    hidden, index, weights = routed(2, 9, 2, 64)
    expected = layer.on_host(range(4))(hidden, index * 2, weights)
    for tensor in layer.parameters.values():
        tensor[1::2] = torch.nan
    assert torch.equal(layer.on_host(range(4))(hidden, index * 2, weights), expected)


def test_nan_and_infinity_reach_their_tokens_and_no_others(way):
    layer = Layer(torch.float32, 4, 64, 32)
    hidden, index, weights = routed(4, 9, 2, 64)
    hidden[3, 5], hidden[6, 7] = torch.nan, torch.inf
    found = layer.on_host(range(4))(hidden, index, weights)
    assert (~found.isfinite()).any(1).nonzero().flatten().tolist() == [3, 6]


@pytest.mark.parametrize("is_transposed", [False, True])
def test_threads_change_nothing(is_transposed):
    layer = Layer(torch.bfloat16, 4, 544, 320, Experts(is_transposed=is_transposed))
    call = routed(4, 13, 2, 544)
    expected = layer.on_host(range(4))(*call)
    for threads in (2, 3, 8):
        host_threads = HostThreads(threads)
        experts = layer.on_host(range(4), host_threads)
        assert all(torch.equal(experts(*call), expected) for _ in range(3))
        host_threads.close()


def test_experts_apart_in_memory(way):
    """As where each expert begins at a page."""
    layer = Layer(torch.bfloat16, 3, 64, 96)
    call = routed(3, 9, 2, 64)
    expected = layer.on_host(range(3))(*call)
    for name, tensor in layer.parameters.items():
        apart = torch.full((3, tensor[0].numel() + 80), torch.nan, dtype=tensor.dtype)
        apart[:, 16:-64] = tensor.flatten(1)
        layer.parameters[name] = apart[:, 16:-64].unflatten(1, tensor.shape[1:])
    experts = layer.on_host(range(3))
    assert experts.few_tokens
    assert torch.equal(experts(*call), expected)


# what lies between the matrices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act_fn", "kind"),
    [
        (silu, gates.SILU),
        (nn.GELU(), gates.GELU),
        (nn.GELU("tanh"), gates.GELU_TANH),
        (torch.relu, None),
        (nn.Hardswish(), None),
    ],
)
def test_gates_are_known_by_what_they_give(act_fn, kind, way):
    layer = Layer(torch.float32, 3, 64, 96, Experts(act_fn))
    gate = gates.Gate.of(layer.module)
    assert gate == (None if kind is None else gates.Gate(kind))
    check(layer, routed(3, 9, 2, 64), [0, 1, 2])


@pytest.mark.parametrize("module", [Tangled(), Experts(torch.relu, has_gate=False), Experts(has_gate=False)])
def test_a_gate_that_the_kernel_lacks_is_left_to_torch(module):
    layer = Layer(torch.float32, 3, 64, 96, module, bias=True)
    assert layer.on_host([0]).few_tokens is None
    check(layer, routed(3, 9, 2, 64), [0, 2])


@pytest.mark.parametrize(("hidden", "between"), [(40, 32), (32, 40)])
def test_rows_that_are_no_whole_number_of_vectors_are_left_to_torch(hidden, between):
    layer = Layer(torch.float32, 3, hidden, between)
    assert layer.on_host([0]).few_tokens is None
    check(layer, routed(3, 9, 2, hidden), [0, 2])


def test_float64_stays_float64():
    layer = Layer(torch.float64, 3, 64, 96)
    hidden, index, weights = routed(3, 9, 2, 64)
    found = layer.on_host([0, 1, 2])(hidden.double(), index, weights)
    exact = layer.reference(hidden, index, weights, {0, 1, 2})
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-20, 1e4])
def test_extreme_gates_do_not_overflow(scale):
    layer = Layer(torch.float32, 2, 64, 96)
    hidden, index, weights = routed(2, 9, 2, 64)
    check(layer, (hidden * scale, index, weights), [0, 1])


@pytest.mark.parametrize("lacking", ["has_gate", "is_transposed"])
def test_a_module_that_says_too_little_is_refused(lacking):
    layer = Layer(torch.float32, 2, 32, 32)
    delattr(layer.module, lacking)
    assert not can_run_on_host(layer.module)
    with pytest.raises(ValueError, match="Experts does not say"):
        layer.on_host([0])


def test_experts_with_a_norm_of_their_own_are_refused():
    layer = Layer(torch.float32, 2, 32, 32)
    layer.module.has_post_expert_norm = True
    assert not can_run_on_host(layer.module)


# which way, and for which processor ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "ways"), [(64, {"kernel"}), (65, {"products"})])
def test_few_tokens_an_expert_go_to_the_kernel(tokens, ways, monkeypatch):
    layer, used = Layer(torch.float32, 2, 32, 32), set()
    for owner, name, what in (
        (few_tokens.FewTokens, "__call__", "kernel"),
        (host_experts.HostExperts, "_by_products", "products"),
    ):
        monkeypatch.setattr(owner, name, lambda _, hidden, pairs, what=what: used.add(what) or hidden)
    index = torch.arange(2).repeat(tokens)[:, None]
    layer.on_host([0, 1])(random(2 * tokens, 32), index, torch.ones(2 * tokens, 1))
    assert used == ways


def test_what_is_prepared_is_not_compiled_in_a_call():
    layer = Layer(torch.float16, 3, 64, 96)
    experts = layer.on_host([2])
    experts.prepare()
    before = [list(phase.signatures) for phase in (kernel.up_phase, kernel.down_phase)]
    for index_type in (torch.int64, torch.int32):
        hidden, index, weights = routed(3, 9, 2, 64)
        experts(hidden.half(), index.to(index_type), weights.half())
    assert [list(phase.signatures) for phase in (kernel.up_phase, kernel.down_phase)] == before
    layer.on_host([]).prepare()


def test_what_is_returned_can_be_written_to():
    found = Layer(torch.float32, 3, 64, 96).on_host([2])(*routed(3, 9, 2, 64))
    assert not found.add_(1).is_inference()


@pytest.mark.parametrize("features", OTHER_PROCESSORS)
def test_with_the_registers_of_other_processors_it_is_the_same(features, monkeypatch):
    """By two threads, which need less compiled than one."""
    modules = vectors, products, matrix, kernel, few_tokens
    *_, own_matrix, _, own_few_tokens = made_for(features, modules, monkeypatch)
    monkeypatch.setattr(host_experts, "FewTokens", own_few_tokens.FewTokens)
    monkeypatch.setattr(host_experts, "Matrix", own_matrix.Matrix)
    with contextlib.closing(HostThreads(2)) as threads:
        for kind in (torch.bfloat16, 8, 4):
            for module in (Experts(), OssExperts(is_transposed=True)):
                layer = Layer(kind, 2, 96, 64, module)
                assert isinstance(layer.on_host([0], threads).few_tokens, own_few_tokens.FewTokens)
                check(layer, routed(2, 7, 2, 96), [0, 1], threads)


def test_what_is_kept_of_the_kernel_is_renewed_with_its_vectors():
    sources = b"".join(Path(module.__file__).read_bytes() for module in (vectors, products, turns))
    for phase in (kernel.up_phase, kernel.down_phase, kernel.phases_in_turns):
        cells = [cell.cell_contents for cell in phase.py_func.__closure__]
        assert hashlib.sha256(sources).hexdigest() in cells
