"""The unit of a column of a sweep's rows, for pictures: of results their names say it, of a machine its own file."""

from collections.abc import Sequence
from contextlib import suppress

from sim.problem import Hardware
from sim.sweep.axes import HARDWARE
from sim.sweep.sweep import Row
from traces.errors import InputError

ENDINGS = {
    "_tokens_per_s": "tokens/s",
    "_per_s": "1/s",
    "_s": "s",
    "_bytes": "bytes",
    "_bits": "bits",
    "_len": "tokens",
}
NAMED = {
    "seconds_per_token": "s",
    "micro_batch_size": "requests",
    "num_micro_batches": "micro-batches",
    "num_requests": "requests",
    "batch_size": "requests",
    "requests": "requests",
    "prefill_chunk": "tokens",
    "arrival_rate": "requests/s",
}


def unit_of(rows: Sequence[Row], column: str) -> str:
    """As in `GB/s`; nothing of what has none, or of what a user has named."""
    name = column.removeprefix("policy.")
    if name in NAMED:
        return NAMED[name]
    if column.startswith(HARDWARE):
        return _of_the_machine(rows, column)
    return next((unit for ending, unit in ENDINGS.items() if name.endswith(ending)), "")


def _of_the_machine(rows: Sequence[Row], column: str) -> str:
    path = column.removeprefix(HARDWARE)
    if path.endswith("*"):
        return "×"
    if path.endswith("]"):
        return ""  # it has its unit in its name
    with suppress(InputError):  # a machine that is no more where it was
        return Hardware.load(str(rows[0].get("hardware", ""))).value(path).unit
    return ""
