"""A speed that somebody measured, and how the program was set that ran."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from traces.errors import InputError


class Speed(StrEnum):
    """What was measured, each in tokens of all requests a second."""

    PREFILL = "prefill"  # prompt tokens over prefill
    DECODE = "decode"  # generated tokens, less the first of each request, over decode
    WHOLE = "whole"  # generated tokens over prefill and decode

    @property
    def of_prediction(self) -> str:
        """The name of what a prediction, and its band, say of it."""
        return "throughput_tokens_per_s" if self is Speed.WHOLE else f"{self.value}_tokens_per_s"


@dataclass(frozen=True, slots=True)
class RunSetting:
    """What a file says of its run; None or empty: nothing."""

    program: str = ""
    model: str = ""
    gpu: str = ""
    cpu: str = ""
    schedule: str = ""
    policy: Mapping[str, Any] = field(default_factory=dict)
    host_layers: tuple[int, int] | None = None
    """[first, stop): layers whose experts the host computes."""
    device_layers: int | None = None
    """So many last layers on the device, the others on the host whole."""
    piece_tokens: int | None = None
    """Most prompt tokens that go through the layers at once."""
    kv_bits: float | None = None
    threads: int | None = None
    is_mapped: bool | None = None
    """Whether weights are read from the mapped file."""
    model_params: int | None = None
    model_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without what nothing is said of."""
        said = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in said.items() if value not in (None, "", {})}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured speed. Raises InputError for one that is none."""

    speed: Speed
    tokens_per_s: float
    requests: int = 1
    prompt_len: int | None = None
    gen_len: int | None = None
    tokens_a_request: int | None = None
    """Of prompt and generation together, where a file tells no more; the speed then is of both."""
    setting: RunSetting = field(default_factory=RunSetting)

    def __post_init__(self) -> None:
        if not 0 < self.tokens_per_s < float("inf"):
            raise InputError(f"measured: {self.tokens_per_s} is not allowed; give tokens a second, above 0")
