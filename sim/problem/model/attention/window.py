"""What a sliding window leaves of a KV cache: the law that plans, admission and the engine go by."""

from typing import Any


def within_window(tokens: Any, window: int | None) -> Any:
    """What a KV cache keeps of so many tokens of one request, or of each of an array of such numbers.

    In a full sliding window the newest token takes the place of the oldest.
    """
    return tokens if window is None else tokens - (tokens > window) * (tokens - window)
