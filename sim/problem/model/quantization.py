"""The native width of a checkpoint's weights, scales included, from `torch_dtype` and `quantization_config`."""

from sim.problem.model.reading import Fields
from traces.errors import check_choice

_DTYPE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8}
_METHODS = ("mxfp4", "fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors")


def native_bits(fields: Fields) -> dict[str, float]:
    """The widths of a Model. No format quantises embedding and head, and activations have 16 bits at least.

    The rest of a layer keeps the checkpoint's dtype where the quantisation leaves attention out, as gpt-oss does.
    Raises InputError for a dtype or a method that is not known.
    """
    dtype = fields.text("dtype", "bfloat16").removeprefix("torch.")
    plain = float(_DTYPE_BITS[check_choice("dtype", dtype, _DTYPE_BITS)])
    section = fields.section("quantization_config")
    expert = _quantised_bits(section) if "quantization_config" in fields else plain
    attention_excluded = any("attn" in str(module) for module in section.entries("modules_to_not_convert") or ())
    other = plain if attention_excluded else expert
    return {"expert_bits": expert, "other_bits": other, "embedding_bits": plain, "activation_bits": max(plain, 16.0)}


def _quantised_bits(section: Fields) -> float:
    method = check_choice(section.where + "quant_method", section.text("quant_method"), _METHODS)
    if method == "mxfp4":  # OCP Microscaling: a shared 8-bit exponent for 32 values of 4 bits
        return 4 + 8 / 32
    if method == "fp8":  # a 32-bit scale per block
        if "weight_block_size" not in section:
            return 8
        return 8 + 32 / (section.count("weight_block_size", layer=0) * section.count("weight_block_size", layer=1))
    if method in ("gptq", "awq"):  # per group a 16-bit scale and a zero point as wide as a value
        bits = section.count("bits")
        return bits + _per_group(section, 16 + bits)
    if method == "bitsandbytes":  # NF4: a 32-bit scale for 64 values
        return 8 if section.flag("load_in_8bit") else 4 + 32 / 64
    weights = section.section("config_groups").section("group_0").section("weights")
    return weights.count("bits") + _per_group(weights, 16)  # compressed-tensors: a 16-bit scale per group


def _per_group(section: Fields, extra_bits: float) -> float:
    """Bits a value pays for its group's scale; a group size of -1 is a whole row, whose scale weighs nothing."""
    group = section.count("group_size", default=-1, minimum=-1)
    return extra_bits / group if group > 0 else 0.0
