"""The widths of a checkpoint as its configuration says them: as it was trained, and what a quantiser made of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sim.problem.widths.modules import Module, mean_widths
from sim.problem.widths.quantisers import alike, groups
from sim.problem.widths.quantisers.scheme import Scheme
from sim.problem.widths.quantisers.section import Section
from sim.problem.widths.widths import Widths
from traces.errors import InputError, check_choice, nearest, shown

DTYPE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8}

METHODS: Mapping[str, Callable[[Section], Scheme]] = {
    "auto-round": alike.auto_round,
    "awq": alike.awq,
    "bitsandbytes": alike.bitsandbytes,
    "compressed-tensors": groups.compressed_tensors,
    "eetq": alike.eight_bits,
    "fbgemm_fp8": alike.eight_bits,
    "fp8": alike.fp8,
    "gptq": alike.gptq,
    "hqq": alike.hqq,
    "metal": alike.metal,
    "mlx": alike.mlx,
    "modelopt": groups.modelopt,
    "mxfp4": alike.mxfp4,
    "mxfp8": alike.mxfp8,
    "nvfp4": alike.nvfp4,
    "quanto": alike.quanto,
    "quark": groups.quark,
    "torchao": alike.torchao,
}
"""The quantisers whose configurations are read, by `quant_method`."""

_SAME = {
    "intel/auto-round": "auto-round",
    "auto_round": "auto-round",
    "awq_marlin": "awq",
    "gptq_marlin": "gptq",
    "compressed_tensors": "compressed-tensors",
    "modelopt_fp4": "modelopt",
    "modelopt_fp8": "modelopt",
    "modelopt_mixed": "modelopt",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
}
"""Other names of them."""


def plain_bits(dtype: str) -> float:
    """The width of a number of this type, with or without `torch.` before it. Raises InputError for another."""
    name = dtype.removeprefix("torch.")
    return float(DTYPE_BITS[check_choice("dtype", name, DTYPE_BITS)])


def native_widths(config: Mapping[str, Any], dtype: str, modules: Sequence[Module]) -> Widths:
    """The width of each kind of tensor. Routers and norms keep the type that the model was trained in.

    Raises InputError for a dtype or a quantiser that is not known, and for a configuration that cannot be read.
    """
    plain, found = plain_bits(dtype), scheme_of(config)
    if found is None:
        return Widths.alike(plain)
    return mean_widths(((module, found.bits_of(module) or plain) for module in modules), plain)


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """What the quantiser of a configuration does; None where there is none."""
    name = "quantization_config" if config.get("quantization_config") is not None else "quantization"
    values = config.get(name)
    if values is None:
        return None
    section = Section(values, name)
    if config.get("expert_dtype") is not None:
        section = Section({"expert_dtype": config["expert_dtype"], **section.values}, name)
    return METHODS[_method(section)](section)


def _method(section: Section) -> str:
    """The quantiser, by its name, or by fields that only one of them writes."""
    given = section.find("quant_method")[1]
    if given is None:
        if {"bits", "group_size"} <= section.values.keys() or "mode" in section:
            return "mlx"
        if "quant_algo" in section or "quantization" in section:
            return "modelopt"
        if "config_groups" in section:
            return "compressed-tensors"
    name = str(given).lower() if given is not None else ""
    name = _SAME.get(name, name)
    if name not in METHODS:
        hint = f"{nearest(name, METHODS)}; known are {', '.join(METHODS)}"
        raise InputError(f"{section.where}: quant_method {shown(given)} is not known{hint}")
    return name
