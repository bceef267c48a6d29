"""What ends a run of several ranks: one that is lost, or one that fails."""

import signal
from dataclasses import dataclass
from typing import Self

from traces.errors import InputError


class RankError(InputError):
    """A rank ended before its work was done. Names it."""


class PeerLostError(RuntimeError):
    """Another rank left in the middle of what all do together: its own error is the one to tell."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank ended, as it can be sent from one process to another. `whole` is its traceback."""

    text: str
    whole: str
    is_mendable: bool
    is_consequence: bool

    @classmethod
    def of(cls, error: BaseException, whole: str) -> Self:
        """Of what a rank raised."""
        mendable = isinstance(error, InputError)
        text = str(error) if mendable else f"{type(error).__name__}: {error}"
        return cls(text, whole, mendable, is_peer_lost(error))

    def error(self, rank: int, *, all_say_so: bool) -> BaseException:
        """What the caller is told: what all ranks say alike is not the fault of one."""
        if self.is_mendable:
            return InputError(self.text) if all_say_so else RankError(f"rank {rank}: {self.text}")
        failed = RuntimeError(f"rank {rank} failed: {self.text}")
        failed.__cause__ = RuntimeError(f"in rank {rank}:\n{self.whole}")
        return failed


def is_peer_lost(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the loss of another rank."""
    while error is not None:
        if isinstance(error, PeerLostError):
            return True
        error = error.__cause__ or error.__context__
    return False


def died(rank: int, exit_code: int) -> RankError:
    """Of a rank whose process ended without a word."""
    if exit_code >= 0:
        return RankError(f"rank {rank} ended with exit code {exit_code} before its work was done: see what it printed")
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    why = ": by somebody, or by the system for want of memory" if -exit_code == signal.SIGKILL else ""
    return RankError(f"rank {rank} was killed ({name}){why}; all others were stopped")
