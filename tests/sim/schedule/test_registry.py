"""Schedules by name, those of other packages included."""

import pytest

from sim.schedule import registry
from sim.schedule.systems.zero import Zero
from traces.errors import InputError


class Elsewhere(Zero):
    """A schedule that another package brings."""

    name = "elsewhere"
    summary = "as zero, from elsewhere"


class Entry:
    """What `importlib.metadata` gives for one entry point."""

    name = "elsewhere"

    def __init__(self, target: object) -> None:
        self._target = target

    def load(self) -> object:
        return self._target


@pytest.fixture
def installed(monkeypatch):
    """Pretends that a package with an entry point of ours is installed."""

    def install(target: object) -> None:
        groups = {registry.ENTRY_POINTS: [Entry(target)]}
        monkeypatch.setattr(registry, "entry_points", lambda group: groups[group])
        registry.registered.cache_clear()

    yield install
    registry.registered.cache_clear()


def test_a_schedule_of_another_package_has_a_name_beside_ours(installed):
    installed(Elsewhere)
    assert list(registry.registered()) == [*(ours.name for ours in registry.BUILT_IN), "elsewhere"]
    assert isinstance(registry.by_name("elsewhere"), Elsewhere)


def test_it_can_be_compared(installed, capsys):
    from sim.cli import main

    installed(Elsewhere)
    sizes = ["--micro-batch-size", "4", "--num-micro-batches", "1", "--gen-len", "4", "--jobs", "1"]
    assert main(["compare", "--schedules", "elsewhere,zero", *sizes]) == 0
    assert "elsewhere" in capsys.readouterr().out


def test_an_entry_point_that_is_no_schedule_is_named(installed):
    installed(print)
    with pytest.raises(InputError, match=r"cgopipe\.schedules:elsewhere is not a Schedule class"):
        registry.registered()


def test_an_unknown_name_is_refused_with_the_nearest_and_all():
    with pytest.raises(InputError, match=r"'fleksgen'; did you mean flexgen.*known: cgopipe, fastdecode"):
        registry.by_name("fleksgen")
