"""Cards: found by the names that people and drivers give them, each with numbers of its data sheet."""

import re

import pytest

from sim.problem import Basis, Hardware
from sim.problem.machine.cards import card_of, cards, link_peak
from traces.errors import InputError


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("4090", "rtx4090"),
        ("RTX 4090", "rtx4090"),
        ("rtx_4090", "rtx4090"),
        ("GeForce RTX4090", "rtx4090"),
        ("H100 SXM", "h100"),
        ("h100 pcie", "h100-pcie"),
        ("4060 Ti 16GB", "rtx4060ti-16gb"),
        ("A100 80 GB", "a100-80gb"),
        ("A6000", "rtx-a6000"),
        ("6000 Ada", "rtx6000-ada"),
        ("RTX PRO 6000", "rtx-pro-6000"),
        ("Strix Halo", "strix-halo"),
        ("7900 XTX", "rx7900xtx"),
        ("GCP T4", "gcp-t4"),
        ("T4", "t4"),
    ],
)
def test_a_machine_is_found_as_people_write_it(asked, found):
    assert Hardware.load(asked).name == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("a100", "hardware 'a100': may be a100-40gb or a100-80gb; give one of them"),
        ("5060 Ti", "hardware '5060 Ti': may be rtx5060ti-16gb or rtx5060ti-8gb; give one of them"),
        ("Mac Studio", "hardware 'Mac Studio': may be mac-studio-m3-ultra or mac-studio-m4-max; give one of them"),
        ("RTX 6000", "unknown hardware 'RTX 6000'; did you mean"),
        ("4090 laptop", "unknown hardware '4090 laptop'"),
        ("nvidia", "unknown hardware 'nvidia'"),
    ],
)
def test_what_may_be_several_or_none_is_not_guessed(asked, said):
    with pytest.raises(InputError) as caught:
        Hardware.load(asked)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("driver", "gib", "pci", "found"),
    [
        ("NVIDIA GeForce RTX 4090", 23.99, None, "rtx4090"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.99, None, "rtx4060ti-16gb"),
        ("NVIDIA A100-SXM4-80GB", 80, None, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79.6, None, "h100"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 95.6, None, "rtx-pro-6000"),
        ("Tesla T4", 15, None, "t4"),
        ("Navi 31 [Radeon RX 7900 XT/7900 XTX/7900 GRE/7900M]", 23.98, "1002:744c", "rx7900xtx"),
        ("Navi 31 [Radeon RX 7900 XT/7900 XTX/7900 GRE/7900M]", 19.98, "1002:744c", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8, None, None),
        ("NVIDIA GB10", None, None, "dgx-spark"),
        ("Voodoo 2", 0.01, None, None),
    ],
)
def test_what_a_driver_names_is_a_card_of_the_table_or_none(driver, gib, pci, found):
    card = card_of(driver, None if gib is None else gib * 1024**3, pci)
    assert (card and card.key) == found


def test_each_row_is_a_machine_whose_card_is_known_from_its_source():
    for key, card in cards().items():
        machine = Hardware.load(key)
        device, memory, other = machine.device, machine.device_memory, "cpu" if card.is_unified else "link"
        numbers = {"peak": device.peak_flops_per_s, "memory": memory.capacity_bytes}
        numbers["bandwidth"] = memory.bandwidth_bytes_per_s
        assert {number.source for number in numbers.values()} == {card.source}
        numbers[other] = machine.host.peak_flops_per_s if card.is_unified else machine.link.peak_bytes_per_s
        for figure, number in numbers.items():
            assert number.basis is (Basis.ASSUMED if figure in card.assumed else Basis.DATASHEET), (key, figure)


def test_every_source_is_an_address_that_a_reader_can_open():
    for key, card in cards().items():
        assert re.search(r"[a-z0-9-]+\.[a-z]{2,}/\S", card.source), key


def test_what_no_sheet_says_is_assumed_and_never_a_memory():
    assumed = {key: card.assumed for key, card in cards().items() if card.assumed}
    assert {figure for figures in assumed.values() for figure in figures} == {"peak", "cpu", "link", "watts"}
    assert {key for key, figures in assumed.items() if "cpu" in figures} == {
        key for key, card in cards().items() if card.is_unified
    }


def test_no_device_on_the_bus_is_two_cards_but_for_their_memory():
    known = [(pci, card.name) for card in cards().values() for pci in card.pci]
    assert len({pci for pci, _ in known}) == len(set(known))


def test_every_row_can_be_asked_for_by_its_own_name():
    for key, card in cards().items():
        assert Hardware.load(f"{card.name} {card.memory}").name == key


def test_a_link_s_theory_follows_from_its_generation_and_lanes():
    assert [link_peak(f"PCIe {one}")["value"] for one in ("3.0 x16", "4.0 x8", "5.0 x4")] == [15.75, 15.75, 15.75]
    with pytest.raises(InputError, match="give it as PCIe"):
        link_peak("AGP")
