"""What torch does on the device: every op is queued on the thread's stream, once the shape of its result is known."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from async_device.interface import private
from async_device.machine import NAME, Machine
from async_device.memory import in_host_memory, new_tensor, set_storage
from async_device.races import Span

KEY = "PrivateUse1"

VIEWS = ("as_strided", "view", "_reshape_alias", "unfold", "set_.source_Storage_storage_offset", "set_.source_Tensor")
"""Ops that compute nothing: the host's own code for them does."""

NEEDS_VALUES = {
    *("nonzero", "masked_select", "equal", "bincount", "repeat_interleave"),
    *("_unique2", "unique_dim", "unique_consecutive"),
}
"""Ops whose result has a shape, or is a number, that only the values tell: the host waits for them."""

ONE_KERNEL = ("_grouped_mm",)
"""Ops that torch would take apart for a device it does not know; GPUs that the engine is meant for have a kernel."""

Layout = tuple[tuple[int, ...], torch.dtype, tuple[int, ...]]

_layouts: dict[Any, Any] = {}  # of an op's results, by the op and the layout of what it gets
_libraries: list[torch.library.Library] = []  # what is registered lasts as long as they do


def _on_device(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def _host(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return in_host_memory(value) if _on_device(value) else value


def _shape_only(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("meta")
    if not _on_device(value):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _span(tensor: torch.Tensor) -> Span:
    block = tensor.untyped_storage().data_ptr()
    start = block + tensor.storage_offset() * tensor.itemsize
    reach = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return Span(block, start, start + reach * tensor.itemsize)


def _spans(values: Any) -> list[Span]:
    return [_span(one) for one in tree_leaves(values) if _on_device(one) and one.numel()]


def _queue(what: str, work: Callable[[], object], reads: Any, writes: Any) -> None:
    Machine.current.current_stream().launch(what, _spans(reads), _spans(writes), work)


def _any_op(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Every op that has no code of its own here."""
    with torch.inference_mode(False), torch.no_grad():
        args = tuple(_as_declared(one, value) for one, value in zip(op._schema.arguments, args, strict=False))
        written = _written(op, args, kwargs)
        if written:
            return _in_place(op, args, kwargs, written)
        if op._schema.name.removeprefix("aten::") in NEEDS_VALUES:
            return _at_once(op, args, kwargs)
        return _out_of_place(op, args, kwargs)


def _as_declared(argument: torch.Argument, value: Any) -> Any:
    """A number that an op takes as a tensor comes as a number; not every op takes it back so."""
    number = isinstance(value, int | float) and isinstance(argument.type, torch.TensorType)
    return torch.tensor(value) if number else value


def _written(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    arguments = enumerate(op._schema.arguments)
    given = [
        args[i] if i < len(args) else kwargs.get(one.name)
        for i, one in arguments
        if one.alias_info is not None and one.alias_info.is_write
    ]
    return [one for one in given if one is not None]


def _in_place(op: Any, args: Any, kwargs: Any, written: list[Any]) -> Any:
    if any(_on_device(one) and one.numel() == 0 for one in tree_leaves(written)):
        _resize_outputs(op, args, kwargs, written)
    host_args, host_kwargs = tree_map(_host, args), tree_map(_host, kwargs)
    _queue(str(op), lambda: op(*host_args, **host_kwargs), (args, kwargs), written)
    if not op._schema.returns:
        return None
    return written[0] if len(op._schema.returns) == 1 else tuple(written)


def _resize_outputs(op: Any, args: Any, kwargs: Any, written: list[Any]) -> None:
    """`out=` tensors without room get as much as the op writes."""
    shaped_args, shaped_kwargs = tree_map(_shape_only, args), tree_map(_shape_only, kwargs)
    op(*shaped_args, **shaped_kwargs)
    for ours, shaped in zip(written, _written(op, shaped_args, shaped_kwargs), strict=True):
        if _on_device(ours) and ours.shape != shaped.shape:
            new = new_tensor(Machine.current.memory, tuple(shaped.shape), shaped.dtype, shaped.stride())
            set_storage(ours, new.untyped_storage(), tuple(shaped.shape), shaped.stride())


def _out_of_place(op: Any, args: Any, kwargs: Any) -> Any:
    try:
        layouts = _result_layouts(op, args, kwargs)
    except (NotImplementedError, RuntimeError):
        return _at_once(op, args, kwargs, waits=False)  # a device would know the shape: no wait of its host
    results = tree_map(_new_like, layouts, is_leaf=lambda one: isinstance(one, torch.Size | _Shaped))
    host_args, host_kwargs, targets = tree_map(_host, args), tree_map(_host, kwargs), tree_map(_host, results)

    def work() -> None:
        computed = _compute(op, host_args, host_kwargs)
        for target, value in zip(tree_leaves(targets), tree_leaves(computed), strict=True):
            target.copy_(value)

    _queue(str(op), work, (args, kwargs), results)
    return results


class _Shaped:
    """A result without its values."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.layout: Layout = tuple(tensor.shape), tensor.dtype, tensor.stride()


def _new_like(value: Any) -> Any:
    if not isinstance(value, _Shaped):
        return value
    shape, dtype, stride = value.layout
    return new_tensor(Machine.current.memory, shape, dtype, stride)


def _result_layouts(op: Any, args: Any, kwargs: Any) -> Any:
    key = op, *(_key(one) for one in tree_leaves((args, kwargs)))
    if key not in _layouts:
        results = op(*tree_map(_shape_only, args), **tree_map(_shape_only, kwargs))
        _layouts[key] = tree_map(lambda one: _Shaped(one) if isinstance(one, torch.Tensor) else one, results)
    return _layouts[key]


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.device.type, value.shape, value.stride(), value.dtype
    return type(value), value


def _compute(op: Any, args: Any, kwargs: Any) -> Any:
    if op is torch.ops.aten.histc.default and not args[0].is_floating_point():  # a GPU counts integers too
        return op(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return op(*args, **kwargs)


def _at_once(op: Any, args: Any, kwargs: Any, waits: bool = True) -> Any:
    machine = Machine.current
    stream = machine.current_stream()
    _queue(str(op), lambda: None, (args, kwargs), ())
    if waits:
        stream.synchronize(str(op))
    else:
        stream.run()
    computed = _compute(op, tree_map(_host, args), tree_map(_host, kwargs))

    def to_device(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        there = new_tensor(machine.memory, tuple(value.shape), value.dtype, value.stride())
        _queue(str(op), lambda: in_host.copy_(value), (), there) if (in_host := in_host_memory(there)).numel() else None
        return there

    return tree_map(to_device, computed)


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """A copy over the link blocks, unless it need not and the host's side is page-locked."""
    machine = Machine.current
    with torch.inference_mode(False), torch.no_grad():
        there, here = _host(target), _host(source)
        crosses = source.device.type != target.device.type
        host_side = source if target.device.type == NAME else target
        locked = crosses and machine.is_page_locked(host_side)
        if crosses and not locked and host_side is source:
            here = here.clone()  # the driver has read it when the call returns
        _queue("copy" if crosses else "copy on the device", lambda: there.copy_(here), source, target)
        if crosses and not (non_blocking and locked):
            machine.current_stream().synchronize(f"copy of {'page-locked' if locked else 'pageable'} memory")
    return target


def _item(tensor: torch.Tensor) -> Any:
    _queue("item", lambda: None, tensor, ())
    Machine.current.current_stream().synchronize("item")
    with torch.inference_mode(False):
        return in_host_memory(tensor).item()


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """One kernel, as on a GPU: torch would take it apart, and the scores would need memory."""
    op = torch.ops.aten.scaled_dot_product_attention.default
    with torch.inference_mode(False), torch.no_grad():
        result = _empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype)
        given, named, target = tree_map(_host, (query, key, value, *args)), tree_map(_host, kwargs), _host(result)
        _queue("attention", lambda: target.copy_(op(*given, **named)), (query, key, value, args, kwargs), result)
    return result


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.insert(0, steps[0] * max(1, size))
    return tuple(steps[: len(shape)])


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
    shape = tuple(size)
    return new_tensor(Machine.current.memory, shape, dtype or torch.get_default_dtype(), _contiguous(shape))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> torch.Tensor:
    return new_tensor(Machine.current.memory, tuple(size), dtype or torch.get_default_dtype(), tuple(stride))


def register() -> None:
    """Makes torch send the device's ops here; once for the process."""
    aten, rest = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    _libraries.extend((aten, rest))
    rest.fallback(_any_op, KEY)
    cpu = private("DispatchKeySet")(private("DispatchKey").CPU)
    for view in VIEWS:
        name, _, overload = view.partition(".")
        op = getattr(getattr(torch.ops.aten, name), overload or "default")
        aten.impl(view, lambda *args, _op=op, **kwargs: _op.redispatch(cpu, *args, **kwargs), KEY)
    aten.impl("empty.memory_format", _empty, KEY)
    aten.impl("empty_strided", _empty_strided, KEY)
    aten.impl("_copy_from", _copy, KEY)
    aten.impl("_local_scalar_dense", _item, KEY)
    for name in ONE_KERNEL:
        aten.impl(name, functools.partial(_any_op, getattr(torch.ops.aten, name).default), KEY)
    aten.impl("scaled_dot_product_attention", _attention, KEY)
    _let_storages_shrink()


def _let_storages_shrink() -> None:
    """`storage.resize_(0)` frees the memory of a storage of ours; torch would ask a hook that Python cannot be."""
    resize = torch.UntypedStorage.resize_

    def resize_(self: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        if self.device.type != NAME:
            return resize(self, size)
        assert size == 0, "a storage of this device only shrinks to nothing"
        Machine.current.memory.drop(self.data_ptr())
        return self

    torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign]
