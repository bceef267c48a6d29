"""Quantisers that store all modules alike, but those on a list of exceptions."""

import re
from collections.abc import Iterator

from sim.problem.widths.quantisers.formats import (
    MXFP4,
    MXFP8,
    NVFP4,
    SCALE_BITS,
    SMALL_SCALE_BITS,
    of_blocks,
    of_zero_points,
)
from sim.problem.widths.quantisers.patterns import Matches, matching
from sim.problem.widths.quantisers.scheme import MATRICES, Scheme
from sim.problem.widths.quantisers.section import Section
from traces.errors import InputError, shown

_LEFT_OUT = ("modules_to_not_convert", "ignored_layers", "ignore", "llm_int8_skip_modules", "skip_modules", "exclude")
_BUT_THE_HEAD = MATRICES - {"head"}


def _scheme(section: Section, bits: float, *groups: tuple[Matches, float | None], head: bool = False) -> Scheme:
    left_out = matching(section.texts(*_LEFT_OUT))
    return Scheme(bits, left_out, groups, MATRICES if head else _BUT_THE_HEAD)


def gptq(section: Section) -> Scheme:
    """`dynamic` has patterns of modules with other widths, behind "-:" of those that stay as they are."""
    groups = []
    for name, values in section.section("dynamic").sections():
        merged = Section({**section.values, **values.values}, values.where)
        bits = None if name.startswith("-:") else of_zero_points(merged)
        groups.append((matching([f"re:{name.removeprefix('-:').removeprefix('+:')}"]), bits))
    return _scheme(section, of_zero_points(section), *groups, head=section.flag("lm_head"))


def awq(section: Section) -> Scheme:
    """A group is a row or so many weights of one."""
    return _scheme(section, of_zero_points(section))


def auto_round(section: Section) -> Scheme:
    """Integers as GPTQ has them, or formats of small floats; `extra_config` has modules with other widths."""
    groups = []
    for name, values in section.section("extra_config").sections():
        bits = _of_auto_round(Section({**section.values, **values.values}, values.where))
        groups.append((matching([name]), None if bits >= SCALE_BITS else bits))
    named = [str(name) for name, _ in section.section("extra_config").sections()]
    return _scheme(section, _of_auto_round(section), *groups, head="lm_head" in named)


def _of_auto_round(section: Section) -> float:
    kind, bits = section.text("data_type"), section.bits("bits", default=4)
    if bits >= SCALE_BITS:
        return bits
    if kind.startswith("mx"):
        return bits + SMALL_SCALE_BITS / 32
    if kind.startswith("nv"):
        return bits + section.per_group(SMALL_SCALE_BITS, default=16)
    if "fp" in kind or "float" in kind:
        return bits
    return bits + section.per_group(SCALE_BITS + bits, default=128)


def fp8(section: Section) -> Scheme:
    """A scale of a block's weights, of a row's or of all; DeepSeek-V4 has its experts in 4 bits."""
    fp4 = section.text("expert_dtype") == "fp4"
    scheme = _scheme(section, of_blocks(section))
    return Scheme(scheme.bits, scheme.left_out, kinds=scheme.kinds, by_kind={"experts": MXFP4} if fp4 else {})


def mxfp8(section: Section) -> Scheme:
    """8 bits with a shared exponent for 32 weights."""
    return _scheme(section, MXFP8)


def mxfp4(section: Section) -> Scheme:
    """Only routed experts are stored so."""
    return Scheme(MXFP4, matching(section.texts(*_LEFT_OUT)), kinds=frozenset({"experts"}))


def nvfp4(section: Section) -> Scheme:
    """4 bits with a scale of 8 bits for 16 weights."""
    return _scheme(section, NVFP4)


def eight_bits(section: Section) -> Scheme:
    """A scale for each row."""
    return _scheme(section, 8)


def bitsandbytes(section: Section) -> Scheme:
    """NF4 or FP4: a scale of 32 bits for 64 weights, which may be quantised itself to 8 bits in groups of 256."""
    if section.flag("load_in_8bit"):
        return _scheme(section, 8)
    twice = section.flag("bnb_4bit_use_double_quant")
    return _scheme(section, 4 + (8 / 64 + 32 / (64 * 256) if twice else 32 / 64))


def hqq(section: Section) -> Scheme:
    """A scale and a zero point of 16 bits each for a group; patterns may have widths of their own."""
    config = section.section("quant_config")
    if "weight_quant_params" in config:
        return _scheme(section, _of_hqq(config.section("weight_quant_params")))
    if "nbits" in section or "nbits" in config:
        return _scheme(section, _of_hqq(section if "nbits" in section else config))
    patterns = [(name, one.section("weight_quant_params")) for name, one in config.sections()]
    if not patterns:
        raise InputError(f"{section.where}: quant_config is missing; it says nbits and group_size")
    scheme = _scheme(section, 16)
    return Scheme(
        None, scheme.left_out, tuple((matching([name]), _of_hqq(one)) for name, one in patterns if one.values)
    )


def _of_hqq(params: Section) -> float:
    return params.bits("nbits") + params.per_group(2 * SCALE_BITS, default=64)


def quanto(section: Section) -> Scheme:
    """`weights` says int8, float8, int4 or int2."""
    return _scheme(section, section.bits("weights"))


_TORCHAO = (
    ("nvfp4", lambda _: NVFP4),
    ("int4", lambda data: 4 + data.per_group(2 * SCALE_BITS, default=128)),
    ("mx", lambda data: {8: MXFP8}.get(int(data.bits("weight_dtype", "elem_dtype", default=4)), MXFP4)),
    ("uintx|intx", lambda data: data.bits("weight_dtype", "dtype", default=4) + data.per_group(SCALE_BITS, default=32)),
    ("fpx", lambda data: 1 + data.count("ebits", default=3) + data.count("mbits", default=2)),
    ("int8|float8|fp8", lambda _: 8),
)
"""By what the name of a type has in it, the bits of a weight."""


def torchao(section: Section) -> Scheme:
    """A type for all, or types by the names of modules; the embedding only where that is asked for."""
    given = section.find("quant_type")[1]
    if isinstance(given, dict):
        given = given.get("default", given)
    arguments = section.section("quant_type_kwargs")
    kinds = MATRICES | {"embedding"} if section.flag("include_input_output_embeddings") else _BUT_THE_HEAD
    left_out = matching(section.texts(*_LEFT_OUT))
    data = Section(given["_data"], f"{section.where}: _data") if isinstance(given, dict) and "_data" in given else None
    by_name = data.section("module_fqn_to_config", "fqn_to_config") if data else arguments
    if data is not None and by_name.values:
        usual = by_name.find("_default")[1]
        groups = tuple(
            (matching([name]), _of_torchao(value, by_name))
            for name, value in by_name.values.items()
            if name != "_default"
        )
        return Scheme(_of_torchao(usual, by_name) if usual else None, left_out, groups, kinds)
    return Scheme(_of_torchao(given, arguments), left_out, (), kinds)


def _of_torchao(given: object, arguments: Section) -> float:
    name, data = given, arguments
    if isinstance(given, dict):
        name = given.get("_type")
        data = Section(given.get("_data") or {}, f"{arguments.where}: {name}")
    for part, bits in _TORCHAO:
        if isinstance(name, str) and re.search(part, name.lower().replace("dynamicactivation", "")):
            return bits(data)
    raise InputError(f"{arguments.where}: quant_type: {shown(name)} is not known; known are int4, int8, float8, mx")


def mlx(section: Section) -> Scheme:
    """Groups with a scale and a bias of 16 bits each, of embedding and head too; modules may differ, or be left."""
    groups = tuple(_mlx_groups(section))
    return Scheme(_of_mlx(section), groups=groups, kinds=MATRICES | {"embedding"})


def metal(section: Section) -> Scheme:
    """The same for Transformers, which leaves embedding and head."""
    return _scheme(section, _of_mlx(section))


def _mlx_groups(section: Section) -> Iterator[tuple[Matches, float | None]]:
    for name, value in section.values.items():
        if value is False:
            yield matching([name]), None
        elif isinstance(value, dict):
            own = {key: one for key, one in section.values.items() if key in ("bits", "group_size", "mode")}
            yield matching([name]), _of_mlx(Section({**own, **value}, f"{section.where}: {name}"))


def _of_mlx(section: Section) -> float:
    bits, mode = section.bits("bits", default=4), section.text("mode")
    if mode.startswith(("mx", "nv")):
        return bits + section.per_group(SMALL_SCALE_BITS, default=32 if mode.startswith("mx") else 16)
    return bits + section.per_group(2 * SCALE_BITS, default=64)
