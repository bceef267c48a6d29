"""MoE-Lens (arXiv 2504.09345): its bounds and its contended weight stream, beside what our own models say.

Its first model bounds throughput by the KV cache that the host has room for: `min(PME x M / delta, T_GPU)` (section
5.2, equation 4), where M are the tokens that the cache holds, delta is the time of one pass of weights over the link,
and

    PME = 2 (p + g) / ((2 p + g) g)

(equation 3) are the tokens computed in a pass for each one cached, by requests with p prompt tokens that generate g.
Nothing in our code uses that formula: admission counts blocks step by step, and must come to the same. As prompts enter
beside decode, the cache holds (p + g) / (p + g / 2) times as many requests as if each took room to its end (section
5.4, equation 7).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sim.admission import Admission, AdmissionRules, StreamedRequest
from sim.cost import Cost
from sim.problem import Model
from sim.schedule import CPU, H2D, Op, Task
from sim.simulation import Executed, Simulation

GIGA = 1e9
MODEL = "mixtral-8x7b"

PCIE_BYTES_PER_S = 32 * GIGA
"""Of section 5.1."""

SATURATING = {
    "A40": (150e12, 19_200, 614, 1228),
    "L40": (181e12, 23_200, 741, 1482),
    "A100": (312e12, 40_000, 1277, 2554),
}
"""Table 2: FLOP/s in bfloat16, tokens that saturate the device, and GB of their KV cache at 256 and 512 tokens each."""

SEQUENCES = (256, 512)

LINK_BYTES_PER_S = 19.5 * GIGA
DRAM_BYTES_PER_S = 150 * GIGA
"""Measured on its machine, one socket of a Xeon 8380 and an A40 (section 7)."""

PASS_S, CONTENDED_PASS_S = 5.0, 6.0
"""One pass of weights of Mixtral 8x7B, about, and beside attention to 210 GB of KV cache (section 8.2)."""

REQUESTS = ((98, 32), (98, 64), (98, 256), (926, 128))
"""Prompt tokens and generated ones: MTBench and RAG, as in its evaluation."""

CACHE_TOKENS = 40_000
"""Of the KV cache in which admission is asked. The bound is proportional to it."""

STEPS_BEFORE, STEPS_COUNTED = 2, 2
"""Times the longest generation: until as many end as enter, and from there on."""


@dataclass(frozen=True, slots=True)
class BoundCheck:
    """One figure of the paper, and ours. `tolerance` is the largest error that is no contradiction."""

    name: str
    section: str
    published: float
    ours: float
    tolerance: float

    @property
    def error(self) -> float:
        """Ours over the paper's, less 1."""
        return self.ours / self.published - 1

    @property
    def holds(self) -> bool:
        return abs(self.error) <= self.tolerance


def moe_lens_checks() -> list[BoundCheck]:
    """All of them."""
    return [*_saturation(), *_weight_streams(), *_admission()]


def _saturation() -> Iterator[BoundCheck]:
    """Equation 2: tokens that must share each pass of weights, and what their KV cache takes."""
    model = Model.load(MODEL)
    layer = model.layers[0]
    flops = layer.pre_attn_flops(1) + layer.out_proj_flops(1) + layer.ffn_flops(1)
    intensity = flops / (layer.experts_bytes(model.widths.experts) + layer.non_expert_bytes(model.widths))
    for device, (flops_per_s, tokens, *sizes) in SATURATING.items():
        needed = flops_per_s / PCIE_BYTES_PER_S / intensity
        yield BoundCheck(f"tokens that saturate an {device}", "5.1, table 2", tokens, needed, 0.12)
        for length, size in zip(SEQUENCES, sizes, strict=True):
            ours = tokens * length * model.kv_bytes_per_token(model.activation_bits) / GIGA
            yield BoundCheck(f"GB of KV cache for them, {length} tokens each", "5.1, table 2", size, ours, 0.06)


def _weight_streams() -> Iterator[BoundCheck]:
    """A pass of weights over the link, alone and beside attention that reads as fast as memory gives."""
    model = Model.load(MODEL)
    alone_s = (model.experts_bytes() + model.resident_bytes()) / LINK_BYTES_PER_S
    yield BoundCheck("s for a pass of weights", "8.2", PASS_S, alone_s, 0.10)
    stream = Task(0, Op.LOAD_WEIGHTS, H2D, 0)
    attention = Task(1, Op.ATTN, CPU, 0)
    costs = {
        stream: Cost(round(alone_s * 1e9), ((0, round(LINK_BYTES_PER_S)),)),
        attention: Cost(round(4 * alone_s * 1e9), ((0, round(DRAM_BYTES_PER_S)),)),
    }
    ran: list[Executed] = []
    Simulation([[stream, attention]], costs.__getitem__, [round(DRAM_BYTES_PER_S)], on_task=ran.append).run()
    ours_s = next(one.end_ns for one in ran if one.task is stream) / 1e9
    yield BoundCheck("s beside attention to 210 GB of KV cache", "8.2", CONTENDED_PASS_S, ours_s, 0.15)


def _admission() -> Iterator[BoundCheck]:
    """Equations 3 and 7: what a cache of so many tokens carries in a step when as many enter as end."""
    for prompt, generated in REQUESTS:
        computed, running = _steady(prompt, generated)
        pme = 2 * (prompt + generated) / ((2 * prompt + generated) * generated)
        name = f"tokens a step, prompts of {prompt} and {generated} generated"
        yield BoundCheck(name, "5.2, equation 3", pme * CACHE_TOKENS, computed, 0.05)
        to_the_end = CACHE_TOKENS / (prompt + generated)
        gain = (prompt + generated) / (prompt + generated / 2)
        name = "requests at a time, over those with room to their end"
        yield BoundCheck(name, "5.4, equation 7", gain, running / to_the_end, 0.05)


def _steady(prompt: int, generated: int) -> tuple[float, float]:
    """Tokens that a step computes, and requests that are in, in the mean of steps in which as many enter as end.

    A step takes no more prompts than that: if all entered at once, all would end at once, and so ever after.
    """
    entering = CACHE_TOKENS / (generated * (prompt + generated / 2))
    chunk = round(entering * prompt)
    admission = Admission(AdmissionRules(CACHE_TOKENS, CACHE_TOKENS, 1, chunk, block_tokens=1))
    begin, stop = STEPS_BEFORE * generated, (STEPS_BEFORE + STEPS_COUNTED) * generated
    computed = running = waiting = 0
    for step in range(stop):
        while admission.num_waiting < CACHE_TOKENS // prompt + 1:
            admission.arrive(StreamedRequest(waiting, prompt, generated, generated))
            waiting += 1
        composition = admission.step()
        if step >= begin:
            computed += composition.num_decoding + composition.prompt_tokens
            running += admission.num_running
    return computed / (stop - begin), running / (stop - begin)
