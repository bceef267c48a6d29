"""The Hierarchical Roofline Model against the paper's numbers, hand-made machines, and its own definition."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sim_examples import decode_tokens_per_s

from sim.hrm.command import COMMAND
from sim.hrm.estimate import (
    CPU_MEMORY_SHARE,
    GPU_MEMORY_SHARE,
    MoEDims,
    PolicyNumbers,
    attention_bytes,
    attention_flops,
    attention_intensity,
    cpu_memory_bytes,
    dims_of,
    ffn_bytes,
    ffn_flops,
    ffn_intensity,
    ffn_tokens,
    gpu_memory_bytes,
    largest_weight_share,
    layer_time,
)
from sim.hrm.roofline import hierarchy
from sim.hrm.roofs import Hierarchy, Level
from sim.problem import Hardware, Model
from traces.cli import OneLineParser
from traces.errors import InputError

MIXTRAL = MoEDims(n_layers=32, h1=4096, h2=14336, n_q=32, n_kv=8, n_e=8, k=2)
L4 = Hierarchy((Level("GPU", 242e12, 300e9), Level("CPU", 1.3e12, 100e9)), (16e9,))  # as figures 4 and 5 are drawn
L4_OPTIMIZER = Hardware.load("gcp-l4").optimizer
S2 = PolicyNumbers(batch_size=14 * 324, micro_batch_size=324, weight_share=0.0559, prompt_len=77, gen_len=32)


def fits(dims, policy, constants):
    """Whether the optimizer would accept the policy on both memories."""
    gpu = gpu_memory_bytes(dims, policy) <= GPU_MEMORY_SHARE * constants.gpu_memory_bytes * policy.num_devices
    return gpu & (cpu_memory_bytes(dims, policy) <= CPU_MEMORY_SHARE * constants.cpu_memory_bytes)


def giga(flops_per_s) -> float:
    return float(flops_per_s) / 1e9


class TestPaperFigure4:
    """Attention of Mixtral 8x7B on the L4 machine at context 512."""

    @pytest.mark.parametrize(
        ("bits", "intensity", "cpu", "link", "hbm"), [(16, 2.0, 200, 32, 600), (4, 8.0, 800, 128, 2400)]
    )
    def test_attention_in_each_place(self, bits, intensity, cpu, link, hbm):
        reached = float(attention_intensity(MIXTRAL, 512.0, bits))
        assert reached == pytest.approx(intensity, abs=5e-3)
        assert giga(L4["CPU"].attainable(reached)) == pytest.approx(cpu, rel=1e-3)
        over_link = L4.attainable("GPU", {"GPU": reached, "CPU": reached})
        assert giga(over_link.flops_per_s) == pytest.approx(link, rel=1e-3)
        assert over_link.roof == "CPU→GPU link"
        assert giga(L4["GPU"].attainable(reached)) == pytest.approx(hbm, rel=1e-3)

    def test_counts_by_hand(self):
        # 3 requests, context 10: QK 2·3·10·32·128, softmax 2·3·10·32; queries, results 2·3·4096, KV 2·3·10·1024
        assert attention_flops(MIXTRAL, 3, 10) == 245_760 + 1_920
        assert attention_bytes(MIXTRAL, 3, 10) == 2 * (24_576 + 61_440)
        assert attention_bytes(MIXTRAL, 3, 10, bits=4) == 0.5 * (24_576 + 61_440)

    def test_heads_wider_than_the_hidden_size_and_latent_caches(self):
        wide = replace(MIXTRAL, head_dim=256)
        assert (wide.query_width, wide.kv_width) == (8192, 4096)
        latent = replace(MIXTRAL, head_dim=576, cached_width=576)
        assert attention_bytes(latent, 1, 10) == 2 * (2 * 32 * 576 + 10 * 576)


class TestPaperFigure5:
    """The experts of Mixtral 8x7B on the L4 machine."""

    @pytest.mark.parametrize(("tokens", "intensity"), [(32, 8.00), (128, 31.95), (1024, 252.6), (16384, 3373)])
    def test_intensity(self, tokens, intensity):
        assert float(ffn_intensity(MIXTRAL, tokens)) == pytest.approx(intensity, rel=5e-4)

    def test_counts_by_hand(self):
        assert ffn_flops(MIXTRAL, 10) == 2 * 10 * 4096 * 14336 * 6
        assert ffn_bytes(MIXTRAL, 10) == 2 * 10 * (4096 + 14336) + 2_818_572_288

    def test_p1(self):
        p1 = L4.p1("GPU", "CPU")
        assert p1 == pytest.approx(81.25)
        assert giga(L4["CPU"].attainable(p1)) == pytest.approx(1300)
        assert int(np.ceil(ffn_tokens(MIXTRAL, p1))) == 327

    def test_kernel_p2_and_balance_point_at_micro_batch_128(self):
        kernel = float(ffn_intensity(MIXTRAL, 128))
        assert giga(L4["GPU"].attainable(kernel)) == pytest.approx(9584, abs=0.5)
        p2 = float(L4.p2("GPU", "CPU", kernel))
        assert p2 == pytest.approx(599, abs=0.5)
        assert int(np.ceil(ffn_tokens(MIXTRAL, p2))) == 2474
        assert L4.balance("GPU", "CPU", kernel) == pytest.approx(p2)  # the kernel is bound by memory, so they coincide

    def test_intensity_that_no_batch_reaches(self):
        # activations alone: 12·h1·h2 FLOP for 2·(h1 + h2) bytes of a token
        limit = 12 * 4096 * 14336 / (2 * (4096 + 14336))
        assert ffn_tokens(MIXTRAL, limit * 1.001) == float("inf")
        assert ffn_tokens(MIXTRAL, limit * 0.999) > 1e7

    @given(st.integers(1, 100_000))
    def test_tokens_invert_intensity(self, tokens):
        assert ffn_tokens(MIXTRAL, float(ffn_intensity(MIXTRAL, float(tokens)))) == pytest.approx(tokens, rel=1e-9)


positive = st.floats(1e-3, 1e3)
intensities = st.floats(1e-3, 1e5)


@st.composite
def hierarchies(draw) -> Hierarchy:
    levels = tuple(Level(f"L{n}", draw(positive) * 1e12, draw(positive) * 1e9) for n in range(draw(st.integers(2, 5))))
    return Hierarchy(levels, tuple(draw(positive) * 1e9 for _ in levels[1:]))


class TestDefinition:
    """Equations 4 to 11, for any number of levels."""

    @given(hierarchies(), st.lists(intensities, min_size=5, max_size=5))
    def test_the_lowest_roof_binds_and_has_a_name(self, machine, values):
        given_at = dict(zip((level.name for level in machine.levels), values, strict=False))
        roofs = machine.roofs("L0", given_at)
        reached = machine.attainable("L0", given_at)
        assert len(roofs) == 1 + len(machine.levels)
        assert reached.flops_per_s == min(roofs.values()) == roofs[str(reached.roof)]

    @given(hierarchies())
    def test_below_p1_the_far_processor_wins_and_above_it_moving_does(self, machine):
        p1, far = machine.p1("L0", "L1"), machine["L1"]
        for intensity, far_wins in ((p1 * 0.99, True), (p1 * 1.01, False)):
            over_link = machine.links_bytes_per_s[0] * intensity
            if p1 > 0:
                assert bool(far.attainable(intensity) > over_link) is far_wins
        if p1 == 0:
            assert machine.links_bytes_per_s[0] >= far.bandwidth_bytes_per_s

    @given(hierarchies(), intensities)
    def test_the_link_binds_exactly_below_p2(self, machine, near):
        p2 = float(machine.p2("L0", "L1", near))
        assert machine.attainable("L0", {"L0": near, "L1": p2 * 0.99}).roof == "L1→L0 link"
        assert machine.attainable("L0", {"L0": near, "L1": p2 * 1.01}).roof != "L1→L0 link"

    @given(hierarchies(), intensities)
    def test_at_the_balance_point_link_and_near_memory_are_the_same_height(self, machine, near):
        roofs = machine.roofs("L0", {"L0": near, "L1": machine.balance("L0", "L1", near)})
        assert roofs["L0 memory"] == pytest.approx(roofs["L1→L0 link"])

    def test_data_from_afar_crosses_the_slowest_link_on_its_way(self):
        machine = Hierarchy((*L4.levels, Level("disk", 0, 5e9)), (16e9, 3e9))
        assert machine.link_bytes_per_s("disk", "GPU") == 3e9
        reached = machine.attainable("GPU", {"GPU": 30.0, "CPU": 30.0, "disk": 100.0})
        assert (giga(reached.flops_per_s), reached.roof) == (pytest.approx(300), "disk→GPU link")
        assert machine.attainable("CPU", {"CPU": 1.0}).roof == "CPU memory"

    def test_a_grid_is_one_call_and_equals_its_points(self):
        near, far = np.array([1.0, 32.0, 5000.0]), np.array([1.0, 2000.0, 1e6])
        grid = L4.attainable("GPU", {"GPU": near, "CPU": far})
        assert list(grid.roof) == ["CPU→GPU link", "GPU memory", "GPU compute"]
        for n in range(3):
            one = L4.attainable("GPU", {"GPU": near[n], "CPU": far[n]})
            assert (grid.flops_per_s[n], grid.roof[n]) == (one.flops_per_s, one.roof)

    def test_what_is_no_hierarchy(self):
        gpu, cpu = L4.levels
        for levels, links in (((gpu, cpu), ()), ((gpu, cpu), (0.0,)), ((gpu, gpu), (1.0,)), ((), ())):
            with pytest.raises(InputError):
                Hierarchy(levels, links)
        with pytest.raises(InputError, match="inwards"):
            L4.link_bytes_per_s("GPU", "CPU")
        with pytest.raises(InputError, match="no level 'TPU'"):
            L4["TPU"]
        with pytest.raises(InputError, match="bandwidth above 0"):
            Level("GPU", 1.0, 0.0)


class TestPaperOptimizer:
    """The estimate of the artifact's policy search, on its published policy for S2: 324 × 14."""

    def test_reproduces_layer_time_and_throughput(self):
        assert layer_time(MIXTRAL, S2, L4_OPTIMIZER).total_s == pytest.approx(0.1549, abs=5e-5)
        share = largest_weight_share(MIXTRAL, S2, L4_OPTIMIZER)
        assert share == pytest.approx(0.0559, abs=5e-5)
        exact = replace(S2, weight_share=share)
        assert decode_tokens_per_s(MIXTRAL, exact, L4_OPTIMIZER) == pytest.approx(944.66, abs=5e-3)

    def test_each_resource_by_hand(self):
        time = layer_time(MIXTRAL, S2, L4_OPTIMIZER)
        assert time.link_s == pytest.approx(2.818572288e9 * (1 - 0.0559) / (16 * 2**30))
        bytes_of_experts = 2 * 324 * (4096 + 14336) + 2.818572288e9
        assert time.gpu_s == pytest.approx(14 * bytes_of_experts / (285 * 2**30))  # bound by memory: 23 ms of compute
        kv_and_queries = 2 * (2 * 324 * 4096 + 324 * 109 * 2048)
        assert time.cpu_s == pytest.approx(14 * kv_and_queries / (76 * 2**30))

    def test_attention_on_the_device_takes_its_time_and_none_of_the_hosts(self):
        on_cpu, on_gpu = (
            layer_time(MIXTRAL, replace(S2, attention_on_gpu=place), L4_OPTIMIZER) for place in (False, True)
        )
        kv_and_queries = 2 * (2 * 324 * 4096 + 324 * 109 * 2048)
        assert on_gpu.gpu_s - on_cpu.gpu_s == pytest.approx(14 * kv_and_queries / (285 * 2**30))
        assert (on_gpu.cpu_s, on_gpu.link_s) == (0, on_cpu.link_s)

    def test_memory_of_the_gpu_by_hand(self):
        attention = (4 * 4096**2 + 4 * 4096**2 // 4) * 32
        resident = attention + 2_818_572_288 * 32 * 0.0559
        prefill = 4 * 4096 * 324 * 77 + 2 * 4096 * 4536 * 77 + 8 * 77 * 1024 * 324
        intermediate = 2.4 * (324 * 2 * 4096 * 77 + 324 * 2 * 3 * 14336 * 77)
        buffers = 2 * 2_818_572_288 * (1 - 0.0559)
        assert gpu_memory_bytes(MIXTRAL, S2) == pytest.approx(resident + prefill + intermediate + buffers)
        assert gpu_memory_bytes(MIXTRAL, replace(S2, whole_batch_in_prefill=False)) == pytest.approx(
            resident + 8 * 4096 * 324 * 77 + 8 * 77 * 1024 * 324 + intermediate + buffers
        )

    def test_memory_of_the_gpu_with_short_prompts_peaks_in_decode(self):
        short = replace(S2, prompt_len=1)
        attention = (4 * 4096**2 + 4 * 4096**2 // 4) * 32
        resident = attention + 2_818_572_288 * 32 * 0.0559
        intermediate = 2.4 * (324 * 2 * 4096 + 324 * 2 * 3 * 14336)
        decode = 4 * 4096 * 4536
        assert gpu_memory_bytes(MIXTRAL, short) == pytest.approx(
            resident + decode + intermediate + 2 * 2_818_572_288 * (1 - 0.0559), rel=1e-9
        )

    def test_memory_of_the_cpu_by_hand(self):
        streamed = 2_818_572_288 * (1 - 0.0559)
        kv, hidden = 4 * (77 + 32) * 1024 * 4536 * 32, 2 * 4096 * 4536 * 77
        assert cpu_memory_bytes(MIXTRAL, S2) == pytest.approx(streamed * 34 + kv + hidden)

    def test_the_published_policy_is_the_largest_that_fits(self):
        share = float(largest_weight_share(MIXTRAL, S2, L4_OPTIMIZER))
        for micro_batches, share_factor, accepted in ((14, 1.0, True), (14, 1.001, False), (15, 1.0, False)):
            policy = replace(S2, batch_size=324 * micro_batches, weight_share=share * share_factor)
            assert bool(fits(MIXTRAL, policy, L4_OPTIMIZER)) is accepted

    def test_the_largest_share_fills_the_gpu(self):
        policy = replace(S2, weight_share=largest_weight_share(MIXTRAL, S2, L4_OPTIMIZER))
        assert gpu_memory_bytes(MIXTRAL, policy) == pytest.approx(GPU_MEMORY_SHARE * 24 * 2**30)
        assert cpu_memory_bytes(MIXTRAL, policy) < CPU_MEMORY_SHARE * 184.29 * 2**30
        roomy = replace(L4_OPTIMIZER, gpu_memory_bytes=1e15)
        assert largest_weight_share(MIXTRAL, S2, roomy) == 1.0

    def test_two_devices_double_the_gpu_and_not_the_link(self):
        one, two = (layer_time(MIXTRAL, replace(S2, num_devices=n), L4_OPTIMIZER) for n in (1, 2))
        assert two.gpu_s == pytest.approx(one.gpu_s / 2)
        assert (two.link_s, two.cpu_s) == (one.link_s, one.cpu_s)
        compute_bound = replace(L4_OPTIMIZER, gpu_bandwidth_bytes_per_s=1e18)
        one, two = (layer_time(MIXTRAL, replace(S2, num_devices=n), compute_bound) for n in (1, 2))
        assert two.gpu_s == pytest.approx(one.gpu_s / 2)

    def test_a_grid_of_policies_is_one_call(self):
        batches = np.array([324.0, 648.0, 4536.0, 9072.0])
        policies = replace(S2, batch_size=batches)
        rates, feasible = (f(MIXTRAL, policies, L4_OPTIMIZER) for f in (decode_tokens_per_s, fits))
        assert list(feasible[[0, 1, 3]]) == [True, True, False]
        for n, batch in enumerate(batches):
            assert rates[n] == decode_tokens_per_s(MIXTRAL, replace(S2, batch_size=float(batch)), L4_OPTIMIZER)

    def test_one_token_leaves_nothing_to_estimate(self):
        with pytest.raises(InputError, match="gen_len: 1 leaves no decode step"):
            replace(S2, gen_len=1)


def run(*options: str) -> int:
    parser = OneLineParser()
    COMMAND.add_arguments(parser)
    return COMMAND.run(parser.parse_args(options))


class TestRooflineCommand:
    def test_json_holds_the_papers_points(self, capsys):
        assert run("--json", "-") == 0
        result = json.loads(capsys.readouterr().out)
        points = {point["name"]: point for point in result["points"]}
        rates = ("on_cpu_flops_per_s", "over_link_flops_per_s", "on_gpu_flops_per_s")
        attention = [round(points["attention f16"][rate] / 1e9) for rate in rates]
        assert attention == [200, 32, 600]
        assert (points["P1"]["intensity"], points["P1"]["tokens"]) == (81.25, 327)
        assert (round(points["P2"]["intensity"]), points["P2"]["tokens"]) == (599, 2474)
        assert points["experts N=16384"]["over_link_roof"] == "GPU memory"
        assert [points[name]["meaning"] for name in ("experts N=128", "experts N=1024", "experts N=16384")] == [
            "CPU",
            "GPU: link",
            "GPU: memory",
        ]

    def test_table_and_file(self, capsys, tmp_path):
        target = tmp_path / "roofline.json"
        run("--json", str(target), "--context", "1024")
        printed = capsys.readouterr().out
        for text in ("attention int4", "81.25", "2,474", "9,584", "context 1,024"):
            assert text in printed
        assert json.loads(target.read_text())["context"] == 1024

    def test_devices_add_up(self):
        one, four = (hierarchy(Hardware.load(name)) for name in ("gcp-t4", "gcp-4xt4"))
        assert four["GPU"].peak_flops_per_s == 4 * one["GPU"].peak_flops_per_s
        assert four["CPU"] == one["CPU"]
        assert four.links_bytes_per_s[0] == 4 * one.links_bytes_per_s[0]

    @pytest.mark.parametrize(
        ("name", "dims"),
        [
            ("mixtral-8x7b", (32, 4096, 14336, 32, 8, 8, 2, 4096, 2048)),
            ("qwen3-30b-a3b", (48, 2048, 768, 32, 4, 128, 8, 4096, 1024)),  # heads wider than the hidden size
            ("deepseek-v3", (61, 7168, 2048, 128, 128, 256, 8, 128 * 576, 576)),  # one latent of 512 + 64
        ],
    )
    def test_letters_of_a_model(self, name, dims):
        d = dims_of(Model.load(name))
        assert (d.n_layers, d.h1, d.h2, d.n_q, d.n_kv, d.n_e, d.k, d.query_width, d.kv_width) == dims

    @pytest.mark.parametrize("micro_batch_size", [4, 128, 16384])  # GPU slower than CPU, P2 = balance, P2 < balance
    def test_picture_names_roofs_and_turning_points(self, tmp_path, micro_batch_size):
        from matplotlib import rc_context

        target = tmp_path / "roofline.svg"
        with rc_context({"svg.fonttype": "none"}):
            run("--plot", str(target), "--micro-batch-size", str(micro_batch_size))
        picture = target.read_text(encoding="utf-8")
        names = {"P1", "GPU memory 300 GB/s", "CPU→GPU link 16 GB/s", "CPU peak 1.3 TFLOP/s", "KV f16: 2 FLOP/B"}
        names |= {4: {"stay on the CPU: at this μ the GPU is no faster"}, 128: {"P2 = balance point"}}.get(
            micro_batch_size, {"P2", "balance point"}
        )
        assert {name for name in names if f">{name}<" not in picture} == set()

    def test_png(self, tmp_path):
        run("--plot", str(tmp_path / "roofline.png"))
        assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--context", "0"], "--context: 0 is not allowed; give a whole number of at least 1"),
            (["--micro-batch-size", "-1"], "--micro-batch-size: -1 is not allowed"),
            (["--hardware", "l5"], "unknown hardware 'l5'"),
            (["--plot", "roofline.gif"], "--plot: 'roofline.gif' is not a picture; its name must end in .png"),
            (["--plot", "/no/such/folder/a.png"], "/no/such/folder/a.png: cannot be written: No such file"),
            (["--json", "/no/such/folder/a.json"], "/no/such/folder/a.json: cannot be written: No such file"),
        ],
    )
    def test_wrong_input_is_one_line(self, options, expected):
        with pytest.raises(InputError) as caught:
            run(*options)
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)
