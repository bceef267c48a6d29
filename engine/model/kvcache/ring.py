"""Where tokens lie in room that is too small for all of them: the newest take the places of the oldest."""

from collections.abc import Iterator


def ring_pieces(first: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Of the tokens from `first` to before `stop`, no more than `size`: a place, and the tokens that lie from it on.

    Token n of a request has place n, and begins again at 0 where the room ends.
    """
    while first < stop:
        place = first % size
        behind = min(stop, first + size - place)
        yield place, first, behind
        first = behind
