"""GGUF files: fields and tensors by their headers, read as far as these go, however large the file.

The `gguf` package reads a file whole into views and each word of a vocabulary into an object, which takes seconds; here
its numbers of types are used, and the fields that no model needs are passed over.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.problem.checkpoint.checkpoint import Checkpoint
from sim.problem.checkpoint.gguf_config import config_of
from sim.problem.widths import Tensor
from traces.errors import InputError, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
CHUNK_BYTES = 1 << 20
MOST_HEADER_BYTES = 1 << 30
MOST_TEXT = 1 << 20
MOST_ENTRIES = 10**8
KEPT_ENTRIES = 4096
"""Of an array: there are as many layers at most; vocabularies are longer."""

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_TEXT, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]

ReadRange = Callable[[int, int], bytes]
"""Bytes of a file from the first to before the last."""


class _EndsTooEarlyError(Exception):
    """A header that goes on behind the end of its file."""


class _Bytes:
    """A file from its beginning, fetched in chunks as far as it is looked at."""

    def __init__(self, read: ReadRange) -> None:
        self._read, self._content, self.at = read, bytearray(), 0

    def need(self, count: int) -> int:
        """Have so many bytes at hand and go behind them; returns where they begin."""
        start, end = self.at, self.at + count
        while end > len(self._content):
            if end > MOST_HEADER_BYTES:
                raise _EndsTooEarlyError
            more = self._read(len(self._content), max(end, len(self._content) + CHUNK_BYTES))
            if not more:
                raise _EndsTooEarlyError
            self._content += more
        self.at = end
        return start

    def scalar(self, kind: struct.Struct) -> Any:
        start = self.need(kind.size)
        return kind.unpack_from(self._content, start)[0]

    def bytes(self, count: int) -> bytes:
        start = self.need(count)
        return bytes(self._content[start : start + count])

    def count(self, most: int) -> int:
        found = int(self.scalar(_U64))
        if found > most:
            raise _EndsTooEarlyError
        return found

    def text(self) -> str:
        length = self.count(MOST_HEADER_BYTES)
        start = self.need(length)
        return self._content[start : start + min(length, MOST_TEXT)].decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        for _ in range(count):
            self.need(self.count(MOST_HEADER_BYTES))


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The fields of one file and its tensors: of each its name, shape, number of its type, and where it begins."""

    fields: Mapping[str, Any]
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...]


def read_header(read: ReadRange, where: str) -> GgufHeader:
    """The header of a file. Raises InputError for what is none."""
    content = _Bytes(read)
    try:
        if content.bytes(len(MAGIC)) != MAGIC:
            raise InputError(f"{where}: is not a GGUF file: it does not begin with GGUF")
        version = content.scalar(_U32)
        if version not in VERSIONS:
            raise InputError(f"{where}: is GGUF of version {version}; known are {' and '.join(map(str, VERSIONS))}")
        num_tensors, num_fields = content.count(MOST_ENTRIES), content.count(MOST_ENTRIES)
        fields = dict(_field(content) for _ in range(num_fields))
        return GgufHeader(fields, tuple(_tensor(content) for _ in range(num_tensors)))
    except (_EndsTooEarlyError, struct.error):
        raise InputError(f"{where}: is not a whole GGUF file: its header ends too early") from None


def _field(content: _Bytes) -> tuple[str, Any]:
    return content.text(), _value(content, content.scalar(_U32))


def _value(content: _Bytes, kind: int) -> Any:
    if kind == _TEXT:
        return content.text()
    if kind == _ARRAY:
        return _array(content, content.scalar(_U32), content.count(MOST_ENTRIES))
    if kind not in _SCALARS:
        raise _EndsTooEarlyError
    return content.scalar(_SCALARS[kind])


def _array(content: _Bytes, kind: int, count: int) -> list[Any]:
    """Its entries; of a long one only how many there are, as that many times nothing would be."""
    if kind in _SCALARS and count > KEPT_ENTRIES:
        content.need(count * _SCALARS[kind].size)
        return []
    if kind == _TEXT and count > KEPT_ENTRIES:
        content.skip_texts(count)
        return []
    return [_value(content, kind) for _ in range(count)]


def _tensor(content: _Bytes) -> tuple[str, tuple[int, ...], int, int]:
    name = content.text()
    dims = content.scalar(_U32)
    if dims > 8:
        raise _EndsTooEarlyError
    shape = tuple(int(content.scalar(_U64)) for _ in range(dims))
    return name, shape, int(content.scalar(_U32)), int(content.scalar(_U64))


def read_gguf(paths: Sequence[Path], name: str) -> Checkpoint:
    """The model in a file, or in the parts of one that is split, the first one first."""

    def reader(path: Path) -> ReadRange:
        def read(first: int, last: int) -> bytes:
            with path.open("rb") as file:
                file.seek(first)
                return file.read(last - first)

        return read

    try:
        sizes = [path.stat().st_size for path in paths]
        headers = [read_header(reader(path), str(path)) for path in paths]
    except OSError as error:
        raise InputError(f"{paths[0]}: cannot be read: {error.strerror or error}") from None
    return gguf_checkpoint(headers, sizes, name, str(paths[0]))


def gguf_checkpoint(headers: Sequence[GgufHeader], sizes: Sequence[int], name: str, source: str) -> Checkpoint:
    """The model that headers of one or more files describe; `sizes` are those of the files."""
    tensors = [one for header, size in zip(headers, sizes, strict=True) for one in _with_bytes(header, size, source)]
    shapes = {tensor: shape for header in headers for tensor, shape, _, _ in header.tensors}
    return Checkpoint(config_of(headers[0].fields, shapes, source), name, source, tuple(tensors), is_gguf=True)


def _with_bytes(header: GgufHeader, file_bytes: int, source: str) -> list[Tensor]:
    """Tensors with what they take: by their types, or by where the next one begins where a type is not known."""
    import gguf

    begins = sorted({offset for *_, offset in header.tensors})
    following = dict(zip(begins, [*begins[1:], max(file_bytes, *begins) if begins else 0], strict=True))
    found = []
    for name, shape, kind, offset in header.tensors:
        numbers = math.prod(shape)
        try:
            per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
            size = numbers // per_block * block_bytes
        except (ValueError, KeyError):
            size = following[offset] - offset
            if not numbers or not 1 <= 8 * size / numbers <= 64:
                raise InputError(f"{source}: {shown(name)} is of a type, {kind}, that is not known") from None
        found.append(Tensor(name, numbers, size))
    return found
