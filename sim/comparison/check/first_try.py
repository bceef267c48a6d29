"""What to try first where a run is slower than it should be: `first_try.toml`, by what the run waits for."""

from functools import cache
from pathlib import Path

import msgspec

from sim.comparison.check.measurement import RunSetting
from traces.files import read_toml


class Advice(msgspec.Struct, frozen=True):
    """One thing to try, and of which runs."""

    text: str
    program: str = ""
    mapped: bool = False

    def holds(self, setting: RunSetting) -> bool:
        """Whether it is for a run that was set so."""
        return self.program in ("", setting.program) and (not self.mapped or bool(setting.is_mapped))


@cache
def _by_part() -> dict[str, list[Advice]]:
    return msgspec.convert(read_toml(Path(__file__).with_suffix(".toml")), dict[str, list[Advice]])


def first_try(part: str, setting: RunSetting) -> str:
    """What to try first, in words."""
    return next(one.text for one in _by_part()[part] if one.holds(setting))
