"""Results as JSON values, and as pandas data frames for those who have pandas."""

from typing import Any

from traces.errors import InputError


def as_json(one: object, *names: str) -> dict[str, Any]:
    """Fields and properties under their names; nanoseconds become seconds, `busy_ns` for one `busy_s`."""
    values = {name: getattr(one, name) for name in names}
    return {
        f"{name[:-2]}s" if name.endswith("_ns") else name: value / 1e9 if name.endswith("_ns") else value
        for name, value in values.items()
    }


class Tabular:
    """A result that pandas can show: `rows` are dicts of JSON values, one of the whole result unless it has several."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """What becomes the rows of a data frame."""
        return [self.to_dict()]

    def to_frame(self) -> Any:
        """A pandas.DataFrame; columns of nested values are called by their path, such as `lanes.GPU.busy_s`.

        Raises InputError where pandas is not installed.
        """
        try:
            from pandas import json_normalize
        except ImportError:
            raise InputError("to_frame: needs pandas, which is not installed: pip install pandas") from None
        return json_normalize(self.rows())
