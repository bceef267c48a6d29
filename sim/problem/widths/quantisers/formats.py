"""Bits of a weight in the formats that quantisers store, each with its share of scales and zero points."""

from sim.problem.widths.quantisers.section import Section
from traces.errors import InputError

SCALE_BITS = 16
"""Of a group's scale, where a format does not say otherwise."""
SMALL_SCALE_BITS = 8
"""OCP Microscaling formats have a shared exponent of 8 bits, NVFP4 a scale of 8 bits."""

NVFP4 = 4 + SMALL_SCALE_BITS / 16
MXFP4 = 4 + SMALL_SCALE_BITS / 32
MXFP8 = 8 + SMALL_SCALE_BITS / 32
MICROSCALED = {16: NVFP4, 32: MXFP4}


def of_group(weights: Section) -> float:
    """One group of compressed-tensors or ModelOpt: `num_bits`, `type`, `strategy` and `group_size`."""
    bits = weights.bits("num_bits", "bits")
    block = weights.counts("block_structure")
    if len(block) == 2:
        return bits + 32 / (block[0] * block[1])
    group = weights.count("group_size", default=-1, least=-1)
    if group <= 0:
        return bits  # a scale for a row, or for all
    scale: float = SCALE_BITS
    if weights.text("type") == "float" and group <= 32:
        scale = SMALL_SCALE_BITS
    scale = weights.bits("scale_dtype", default=scale)
    zero_point = bits if not weights.flag("symmetric", True) else 0
    return bits + (scale + zero_point) / group


def of_blocks(section: Section) -> float:
    """8 bits, with a scale for each block: of 32 bits, or an exponent of 8."""
    block = section.counts("weight_block_size")
    if not block:
        return 8
    if len(block) != 2:
        raise InputError(f"{section.where}: weight_block_size has {len(block)} numbers; a block has rows and columns")
    scale = 8 if section.text("scale_fmt") == "ue8m0" else 32
    return 8 + scale / (block[0] * block[1])


def of_zero_points(section: Section, *bits_names: str, default_group: int = -1) -> float:
    """A scale of 16 bits and a zero point as wide as a weight for each group: GPTQ, AWQ and their like."""
    bits = section.bits(*(bits_names or ("bits", "w_bit", "wbits", "num_bits")))
    return bits + section.per_group(SCALE_BITS + bits, default=default_group)
