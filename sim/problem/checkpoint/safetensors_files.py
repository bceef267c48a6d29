"""Headers of safetensors files: eight bytes with its length, and JSON with each tensor's type, shape and place."""

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sim.problem.widths import Tensor
from traces.errors import InputError

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"

FIRST_BYTES = 32 * 1024
"""Read at first: the headers of most shards are no longer."""
MOST_HEADER_BYTES = 100 << 20
"""The library itself reads none that is longer."""

_LENGTH = struct.Struct("<Q")
_PACKED = frozenset({"I32", "U32", "I64", "U64", "I16", "U16", "U8"})
"""Types that hold several weights a word, or codes of them: no checkpoint is trained in them."""
_GIT_LFS = b"version https://git-lfs"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")

_OTHERS = re.compile("adapter|optimizer|training|mtp")
"""Files of tensors beside a model that are none."""

ReadRange = Callable[[int, int], bytes]
"""Bytes of a file from the first to before the last."""


def header_of(read: ReadRange, where: str) -> list[Tensor]:
    """The tensors of one file. Raises InputError for what is none."""
    start = read(0, FIRST_BYTES)
    if start.startswith(_GIT_LFS):
        raise InputError(f"{where}: is a pointer of Git LFS: fetch the file itself (git lfs pull)")
    length = _LENGTH.unpack_from(start)[0] if len(start) >= _LENGTH.size else 0
    if not 2 <= length <= MOST_HEADER_BYTES:
        raise InputError(f"{where}: is not a safetensors file: its header would be {length:,} bytes long")
    end = _LENGTH.size + length
    content = start[_LENGTH.size : end]
    if end > len(start):
        content += read(len(start), end)
    try:
        return [_tensor(name, entry) for name, entry in json.loads(content).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{where}: is not a safetensors file: its header cannot be read") from None


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    return Tensor(name, math.prod(entry["shape"]), int(end) - int(start), entry["dtype"] in _PACKED)


def read_files(paths: Iterable[Path]) -> tuple[Tensor, ...]:
    """The tensors of files on this machine."""
    return tuple(tensor for path in paths for tensor in _of_file(path))


def _of_file(path: Path) -> list[Tensor]:
    def read(first: int, last: int) -> bytes:
        with path.open("rb") as file:
            file.seek(first)
            return file.read(last - first)

    try:
        return header_of(read, str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def weight_files(names: Sequence[str]) -> list[str]:
    """Of the names in a folder the files that hold a model: `model.safetensors` or its shards, before copies of it."""
    found = sorted(name for name in names if name.endswith(SUFFIX) and "/" not in name and not _OTHERS.match(name))
    for first in ("model.safetensors", "model-"):
        mine = [name for name in found if name.startswith(first)]
        if mine:
            return mine
    shards = [name for name in found if _SHARD.search(name) and not name.startswith("consolidated")]
    return shards or (found if len(found) == 1 else [])
