"""Cards by the names that people give them, and each one's row of the table of cards as a machine."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from sim.problem.machine.power import STACKED_J_PER_BYTE, STACKED_SOURCE, reading_watts
from sim.problem.machine.quantity import Basis, Dimension, Quantity
from sim.problem.presets import FOLDER, MACHINES
from traces.errors import InputError, nearest, shown
from traces.files import read_toml

CARDS = FOLDER / "cards.toml"

GENERATIONS = {"1.0": 4.0, "2.0": 8.0, "3.0": 15.75, "4.0": 31.5, "5.0": 63.0, "6.0": 121.0}
"""GB/s of sixteen lanes of PCI Express in one direction, its coding taken off."""

MAKERS = frozenset({"nvidia", "geforce", "amd", "radeon", "instinct", "intel", "apple", "tesla", "quadro"})
ADDED = frozenset({"corporation", "inc", "graphics", "gpu", "generation", "edition", "workstation", "server"})
"""Words of names that tell no card from another."""

FORMS = frozenset({"laptop", "mobile", "q", "pcie", "nvl", "sxm", "ada", "pro", "blackwell", "a"})
VARIANTS = FORMS | {"ti", "super", "d", "xt", "xtx", "gre"}
"""Words of which one too many, or too few, makes another card."""


MEMORY_ALIKE = 0.09
"""How far what a driver tells of a card's memory is from what its sheet says: units of 1024, and what ECC takes."""


@dataclass(frozen=True, slots=True)
class Card:
    """A row of the table: what a data sheet says of a card, or of a machine whose device and host are one memory."""

    key: str
    name: str
    memory: str
    bandwidth: str
    peak: str
    source: str
    host: str = "_plain"
    link: str = ""
    cpu: str = ""
    cores: int = 0
    watts: str = ""
    """What it may draw; nothing of a card whose maker keeps that to himself."""
    watts_source: str = ""
    stacked: bool = False
    """Whether its memory lies on the chip's package: HBM."""
    aliases: tuple[str, ...] = ()
    pci: tuple[str, ...] = ()
    """`vendor:device`, as `lspci -n` shows them."""
    assumed: tuple[str, ...] = ()
    """Which of its figures no sheet says: `peak`, `cpu`, `link`, `watts`; its source tells where they come from."""

    @property
    def is_unified(self) -> bool:
        return not self.link

    @property
    def memory_bytes(self) -> float:
        return float(Quantity.of_text(self.memory, "memory", Dimension.SIZE))

    def basis_of(self, figure: str) -> Basis:
        return Basis.ASSUMED if figure in self.assumed else Basis.DATASHEET

    @property
    def names(self) -> tuple[str, ...]:
        """All by which people know it."""
        return (self.key, self.name, f"{self.name} {self.memory}", *self.aliases)


@cache
def cards() -> dict[str, Card]:
    """All of the table, by name."""
    found = {}
    for key, row in read_toml(CARDS).items():
        lists = {name: tuple(row.get(name, ())) for name in ("aliases", "pci", "assumed")}
        found[key] = Card(key=key, **{**row, **lists})
    return found


def machine_names() -> tuple[str, ...]:
    """All presets: the files of machines, and the cards of the table, each with a plain host."""
    return tuple(sorted({*MACHINES.names(), *cards()}))


def card_table(key: str) -> dict[str, Any]:
    """A card's row as the table of a machine."""
    card = cards()[key]

    def known(figure: str, dimension: Dimension) -> dict[str, object]:
        number = Quantity.of_text(getattr(card, figure), key, dimension)
        return number.known(card.basis_of(figure), card.source).to_dict()

    capacity, bandwidth = known("memory", Dimension.SIZE), known("bandwidth", Dimension.RATE)
    device = {"peak": known("peak", Dimension.COMPUTE)}
    memory = {"capacity": capacity, "bandwidth": bandwidth}
    table: dict[str, Any] = {"extends": card.host, "device": device, "device_memory": memory}
    if card.watts:
        table["power"] = {"device": _draws(card)}
    if not card.is_unified:
        return {
            **table,
            "description": f"{card.name} {card.memory}, {card.link}",
            "link": {"peak": link_peak(card.link, card.basis_of("link"))},
        }
    host = {"peak": known("cpu", Dimension.COMPUTE), "cores": card.cores}
    one = {"unified": True, "host": host, "host_memory": memory, "extends": "_unified"}
    return {**table, **one, "description": f"{card.name}, one memory of {card.memory}"}


def _draws(card: Card) -> dict[str, object]:
    """What it may draw, and where its memory is stacked what it draws while it reads it; `derived` says the rest."""
    limit = Quantity.of_text(card.watts, card.key, Dimension.POWER)
    known: dict[str, object] = {"limit": limit.known(card.basis_of("watts"), card.watts_source).to_dict()}
    if not card.stacked:
        return known
    rate = Quantity.of_text(card.bandwidth, card.key, Dimension.RATE)
    reading_w = reading_watts(limit, rate, STACKED_J_PER_BYTE)
    return {**known, "memory": Quantity(reading_w, "W", Basis.ASSUMED, STACKED_SOURCE).to_dict()}


def link_peak(link: str, basis: Basis = Basis.DATASHEET) -> dict[str, object]:
    """The theory of one direction of `PCIe 4.0 x16`. Raises InputError for what is no such text."""
    found = re.fullmatch(r"PCIe (\d\.\d) x(\d+)", link)
    if found is None or found[1] not in GENERATIONS:
        raise InputError(f"link: {shown(link)} is none; give it as PCIe 4.0 x16")
    rate = GENERATIONS[found[1]] * int(found[2]) / 16
    return Quantity(rate, "GB/s", basis, f"{link}, after coding").to_dict()


def find_machine(name: str) -> str | None:
    """The preset that a person means by `rtx4090`, `4090` or `"RTX 4090"`; None if it is none.

    Raises InputError, with those that it may be, where it may be several.
    """
    if MACHINES.path(name) is not None or name in cards():
        return name
    if "/" in name or name.endswith(".toml"):
        return None
    wanted = words_of(name)
    if not wanted:
        return None
    found = {key: min(sizes) for key in machine_names() if (sizes := [*_matches(wanted, _names_of(key))])}
    least = [key for key, size in found.items() if size == min(found.values())]
    if len(least) > 1:
        raise InputError(f"hardware {shown(name)}: may be {' or '.join(least)}; give one of them")
    return least[0] if least else None


def unknown_machine(name: str) -> InputError:
    """The error for a name that is neither a preset nor a file."""
    known = machine_names()
    return InputError(
        f"unknown hardware {shown(name)}{nearest(name.lower(), known)}; `python -m sim list` shows all {len(known)} "
        "presets; or give the path of a .toml file"
    )


def _names_of(key: str) -> tuple[str, ...]:
    return cards()[key].names if key in cards() else (key,)


def _matches(wanted: frozenset[str], names: Iterable[str]) -> Iterator[int]:
    """Of each name that holds all these words, and no other variant's, how many words it has."""
    for name in names:
        words = words_of(name)
        if wanted <= words and not (words - wanted) & VARIANTS:
            yield len(words)


def words_of(name: str) -> frozenset[str]:
    """`NVIDIA GeForce RTX 4060 Ti` as rtx, 4060 and ti: letters and digits apart, without makers."""
    return frozenset(re.findall(r"[a-z]+|\d+", name.lower().replace("+", " "))) - MAKERS - ADDED


def card_of(name: str, memory_bytes: float | None = None, pci: str | None = None) -> Card | None:
    """The card that a driver or the PCI bus names so: the one whose name has most of these words; None if none has.

    Of several that differ in memory alone it is the one whose memory is nearest.
    """
    by_id = [card for card in cards().values() if pci in card.pci]
    given = words_of(name)
    sizes = {card.key: _most(given, card.names) for card in cards().values()}
    best = max(sizes.values(), default=0)
    found = by_id or [cards()[key] for key, size in sizes.items() if size == best > 0]
    if memory_bytes is not None:
        found = [card for card in found if abs(memory_bytes / card.memory_bytes - 1) < MEMORY_ALIKE or card.is_unified]
        found.sort(key=lambda card: abs(card.memory_bytes - memory_bytes))
    return found[0] if found else None


def _most(given: frozenset[str], names: Iterable[str]) -> int:
    """Words of the longest of these names that is all there, with no variant that the name lacks; 0 if none is."""
    known = (words_of(name) for name in names)
    return max((len(one) for one in known if one and one <= given and not (given - one) & VARIANTS), default=0)
