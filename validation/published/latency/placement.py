"""Where a published run had its experts, and how else it was set: from a row's placement, or its source's words."""

import re
from dataclasses import dataclass
from enum import StrEnum

from traces.errors import InputError, nearest

FORMS = (
    "n-cpu-moe=25 (layers with experts on the CPU), ngl=30 (the last layers on the GPU, the others on the CPU), "
    "gpu-experts=0.4 frequency (a share of each layer's on the GPU, by frequency, random or uniform; or front-loading: "
    "all of the first layers), all-gpu, all-cpu, or nothing"
)


class Chosen(StrEnum):
    """Which experts are on the device."""

    FREQUENCY = "frequency"  # those that tokens use most
    RANDOM = "random"
    UNIFORM = "uniform"  # equally many of each layer
    FRONT_LOADING = "front-loading"  # all of the first layers


@dataclass(frozen=True, slots=True)
class Placing:
    """Layers with their experts on the host, layers on the device, or a share of the experts there.

    None of them: as the system does.
    """

    host_layers: int | None = None
    device_layers: int | None = None
    """So many last layers on the device, the others on the host whole."""
    device_share: float | None = None
    device_slots: int | None = None
    """Experts of each layer on the device, for a share."""
    chosen: Chosen = Chosen.RANDOM


@dataclass(frozen=True, slots=True)
class Options:
    """What else a row says of its run; None: nothing."""

    piece_tokens: int | None = None
    top_k: int | None = None
    sockets: str | None = None


def read_placement(text: str) -> Placing:
    """What the column `placement` says. Raises InputError with the forms that are known."""
    words = text.lower().split()
    name, equals, number = words[0].partition("=") if words else ("", "", "")
    if text.strip().lower() in ("", "all-gpu", "all-cpu"):
        return Placing(device_share={"all-gpu": 1.0, "all-cpu": 0.0}.get(text.strip().lower()))
    if name == "n-cpu-moe" and equals and number.isdecimal() and len(words) == 1:
        return Placing(host_layers=int(number))
    if name == "ngl" and equals and number.isdecimal() and len(words) == 1:
        return Placing(device_layers=int(number))
    if name == "gpu-experts" and equals and len(words) <= 2:
        return Placing(device_share=_share(number), chosen=_chosen(words[1] if len(words) == 2 else Chosen.RANDOM))
    raise InputError(
        f"placement: {text!r} is not known{nearest(name, ('n-cpu-moe', 'ngl', 'gpu-experts'))}; give {FORMS}"
    )


def placement_in_words(policy: str) -> Placing:
    """What the words of a source say: llama.cpp's options, or KTransformers' ratio and strategy."""
    if layers := re.search(r"(?:--n-cpu-moe|-ncmoe)[ =](\d+)", policy):
        slots = re.search(r"(\d+) cache slots", policy)
        if slots:  # the most popular ones by a profile
            return Placing(device_slots=int(slots[1]), chosen=Chosen.FREQUENCY)
        return Placing(host_layers=int(layers[1]))
    if ratio := re.search(r"expert ratio (\d+) ?%(?:, placement (\S+))?", policy, re.IGNORECASE):
        return Placing(device_share=_share(str(int(ratio[1]) / 100)), chosen=_chosen(ratio[2] or Chosen.RANDOM))
    return Placing()


def options_in_words(policy: str) -> Options:
    """Tokens of a piece of a prompt (-ub), experts of a token, sockets."""
    piece, experts = re.search(r"-ub (\d+)", policy), re.search(r"\b(\d+) experts", policy)
    sockets = re.search(r"\b(single|dual) socket", policy)
    return Options(
        int(piece[1]) if piece else None, int(experts[1]) if experts else None, sockets[1] if sockets else None
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InputError(f"placement: gpu-experts={text} is not allowed; give a share from 0 to 1")
    return share


def _chosen(text: str) -> Chosen:
    if text not in [*Chosen]:
        raise InputError(f"placement: {text!r} is not known{nearest(text, Chosen)}; give {', '.join(Chosen)}")
    return Chosen(text)
