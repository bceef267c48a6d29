"""Quantisers that name groups of modules, each with a format of its own: compressed-tensors, ModelOpt, Quark."""

from collections.abc import Mapping

from sim.problem.widths.quantisers.formats import MXFP4, MXFP8, NVFP4, SMALL_SCALE_BITS, of_group
from sim.problem.widths.quantisers.patterns import Matches, matching
from sim.problem.widths.quantisers.scheme import Scheme
from sim.problem.widths.quantisers.section import Section
from traces.errors import InputError, check_choice

_LEFT_OUT = ("ignore", "exclude_modules", "exclude", "modules_to_not_convert", "ignored_layers")


def compressed_tensors(section: Section) -> Scheme:
    """Each group has targets: names, regular expressions behind `re:`, or classes such as Linear."""
    return Scheme(None, matching(section.texts(*_LEFT_OUT)), _config_groups(section))


def _config_groups(section: Section) -> tuple[tuple[Matches, float | None], ...]:
    """Groups that name modules stand before those that name all."""
    groups = []
    for name, group in section.section("config_groups").sections():
        targets = group.texts("targets") or ("Linear",)
        bits = of_group(group.section("weights")) if "weights" in group else None
        groups.append((targets == ("Linear",), name, matching(targets), bits))
    if not groups:
        raise InputError(f"{section.where}: config_groups is missing or names no group")
    return tuple((matches, bits) for _, _, matches, bits in sorted(groups, key=lambda one: one[0]))


_ALGORITHMS: Mapping[str, float] = {
    "FP8": 8,
    "FP8_PER_CHANNEL_PER_TOKEN": 8,
    "FP8_PB_WO": 8 + 32 / 128**2,
    "FP8_PB_REAL": 8 + 32 / 128**2,
    "NVFP4": 4,
    "NVFP4_AWQ": 4,
    "NVFP4_SVDQUANT": 4,
    "W4A16_NVFP4": 4,
    "W4A8_NVFP4_FP8": 4,
    "W4A16_AWQ": 4,
    "W4A8_AWQ": 4,
    "W4A8_MXFP4_FP8": MXFP4,
    "MXFP4": MXFP4,
    "MXFP8": MXFP8,
    "INT8_SQ": 8,
    "W8A8_SQ_PER_CHANNEL": 8,
    "W8A16": 8,
    "INT4_AWQ": 4,
}
"""ModelOpt's names, and bits of a weight without the scales of groups."""
_MIXED = "MIXED_PRECISION"


def modelopt(section: Section) -> Scheme:
    """One algorithm for all but what is excluded, or one a layer; newer files have groups as compressed-tensors do."""
    if "quantization" in section:  # the form of hf_quant_config.json
        section = section.section("quantization")
    left_out = matching(section.texts(*_LEFT_OUT))
    algorithm = str(section.find("quant_algo")[1] or "").upper()
    if "quantized_layers" in section or algorithm == _MIXED:
        layers = section.section("quantized_layers").sections()
        by_bits: dict[float, list[str]] = {}
        for name, layer in layers:
            by_bits.setdefault(_of_algorithm(layer), []).append(name)
        return Scheme(None, left_out, tuple((matching(names), bits) for bits, names in by_bits.items()))
    if algorithm:
        return Scheme(_of_algorithm(section), left_out)
    return Scheme(None, left_out, _config_groups(section))


def _of_algorithm(section: Section) -> float:
    where, algorithm = f"{section.where}: quant_algo", str(section.find("quant_algo")[1] or "").upper()
    bits = _ALGORITHMS[check_choice(where, algorithm, _ALGORITHMS)]
    if "NVFP4" in algorithm:
        return bits + section.per_group(SMALL_SCALE_BITS, default=16)
    return bits + section.per_group(16, default=128) if "AWQ" in algorithm else bits


def quark(section: Section) -> Scheme:
    """One format for all, others for layers whose names match a pattern with wildcards."""
    groups = [(matching([name]), _of_quark(layer)) for name, layer in section.section("layer_quant_config").sections()]
    usual = _of_quark(section.section("global_quant_config"))
    return Scheme(usual, matching(section.texts(*_LEFT_OUT)), tuple(groups))


def _of_quark(layer: Section) -> float | None:
    """Weights that are quantised twice count as they are stored, by the first."""
    weight = layer.find("weight")[1]
    if isinstance(weight, list):
        weight = weight[0] if weight else None
    if weight is None:
        return None
    weights = Section(weight, f"{layer.where}: weight")
    kind = weights.text("dtype")
    if kind.startswith("mx"):
        return {"mxfp4": MXFP4, "mxfp8": MXFP8}.get(kind, weights.bits("dtype") + SMALL_SCALE_BITS / 32)
    if kind.startswith("nvfp4"):
        return NVFP4
    bits = weights.bits("dtype")
    if weights.text("qscheme") != "per_group":
        return bits
    scale = SMALL_SCALE_BITS if weights.text("scale_format") == "e8m0" or kind == "fp4" else 16
    return bits + weights.per_group(scale + (bits if weights.text("symmetric") == "false" else 0), default=32)
