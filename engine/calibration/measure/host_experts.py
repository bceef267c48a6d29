"""What a layer's routed experts take on the host, by the number of tokens: alone, and beside what uses its memory too.

Layers take turns and each call's tokens ask for other experts, so that weights come from memory as they do in a run,
where a layer's turn comes again after all the others.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.calibration.measure.measured import Measured, lane_seconds
from engine.calibration.measure.probes import large_copies
from engine.calibration.measure.runs import Condition, Sample
from engine.device import Device, LaneContext
from engine.host import HostExperts, HostThreads, can_run_on_host
from engine.model import Anatomy, can_split
from sim.problem import Layer, Model, Policy
from sim.schedule import Lane, LaneKind, Op, Task, by_name

TOKENS = (1, 4, 16, 64, 256)
QUICK_TOKENS = (1, 16, 64)
BESIDE_TOKENS = (1, 16)
"""So few tokens that reading the weights takes most of the time."""

CALLS = 2
"""So many calls for each repeat that other measurements get: tokens ask for more or fewer experts."""

COMPUTE_ROWS, COMPUTE_SIZE, COMPUTE_WEIGHTS = 16, 1024, 16
"""What computes on the device meanwhile: products of a few rows with more weights than caches hold."""


class Beside(StrEnum):
    """What else goes on."""

    NOTHING = "nothing"
    STREAM = "streaming weights"
    COMPUTE = "compute on the device"


@dataclass(frozen=True, slots=True)
class HostExpertsTime:
    """Seconds that a layer's experts take on the host for so many tokens."""

    tokens: int
    beside: Beside
    seconds: Measured


def can_be_apart(model: PreTrainedModel) -> bool:
    """Whether routed experts of the model can be computed apart from their layers, each where it is."""
    anatomy = Anatomy.of(model)
    experts = [one for one in anatomy.experts if one]
    return all(can_split(one, anatomy.num_experts) and can_run_on_host(one[0].owner) for one in experts)


def time_host_experts(
    model: PreTrainedModel, described: Model, device: Device, repeats: int, tokens: Sequence[int] = TOKENS
) -> list[HostExpertsTime]:
    """The times of a model's experts; none if the host cannot compute them.

    `described` is the model as the simulator sees it. What streams meanwhile, and what a device that the host plays
    computes, goes on for as long as the measurement does.
    """
    anatomy = Anatomy.of(model)
    layers = [i for i, experts in enumerate(anatomy.experts) if experts and can_run_on_host(experts[0].owner)]
    if not layers:
        return []
    with contextlib.closing(HostThreads(device.cpu_threads)) as threads, ThreadPoolExecutor(1) as apart:
        every = [_on_host(anatomy.experts[i][0].owner, threads) for i in layers]
        calls = cycle(list(zip(every, (described.layers[i] for i in layers), strict=True)))

        def measured(beside: Beside, count: int) -> HostExpertsTime:
            with _beside(beside, device):
                seconds = apart.submit(_times, device, calls, count, model.dtype, 1 + CALLS * repeats).result()
            what = f"experts of a layer on the host, {count} tokens, beside {beside.value}, layers in turn"
            return HostExpertsTime(count, beside, Measured.of(seconds[1:], what))

        alone = [measured(Beside.NOTHING, count) for count in tokens]
        others = [Beside.STREAM, *([Beside.COMPUTE] if device.gpu_threads is not None else [])]
        return alone + [measured(other, count) for other in others for count in BESIDE_TOKENS]


def _on_host(module: nn.Module, threads: HostThreads) -> HostExperts:
    parameters = {name: tensor.detach() for name, tensor in module.named_parameters(recurse=False)}
    return HostExperts.of(module, parameters, range(len(next(iter(parameters.values())))), threads)


def _times(
    device: Device, calls: Iterator[tuple[HostExperts, Layer]], tokens: int, dtype: torch.dtype, count: int
) -> list[float]:
    """Seconds of each of so many calls on the lane of the host."""
    generator = torch.Generator().manual_seed(tokens)
    found = []
    with device.open_lane(LaneKind.CPU) as lane:
        for _, (experts, layer) in zip(range(count), calls, strict=False):
            hidden = torch.randn(tokens, layer.hidden_size, generator=generator).to(dtype)
            weights, index = torch.rand(tokens, layer.num_experts, generator=generator).topk(layer.top_k)
            found.append(_seconds(lane, experts, (hidden, index, weights.to(dtype))))
    return found


def _seconds(lane: LaneContext, experts: HostExperts, call: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    out = torch.empty_like(call[0])
    return lane_seconds(lane, lambda: experts(*call, out))


@contextlib.contextmanager
def _beside(beside: Beside, device: Device) -> Iterator[None]:
    """While entered, another lane is at work without a pause."""
    if beside is Beside.NOTHING:
        yield
        return
    work = _stream if beside is Beside.STREAM else _compute
    begun, ended = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work, device, begun.set, ended.is_set)
        try:
            while not begun.wait(timeout=0.1) and not working.done():
                pass
            yield
        finally:
            ended.set()
            working.result()


def _stream(device: Device, begin: Callable[[], object], is_ended: Callable[[], bool]) -> None:
    with large_copies(device, LaneKind.H2D) as seconds, device.open_lane(LaneKind.H2D) as lane:
        while not is_ended():
            seconds(lane)
            begin()


def _compute(device: Device, begin: Callable[[], object], is_ended: Callable[[], bool]) -> None:
    rows = torch.ones((COMPUTE_ROWS, COMPUTE_SIZE))
    weights = [torch.ones((COMPUTE_SIZE, COMPUTE_SIZE)) for _ in range(COMPUTE_WEIGHTS)]
    with device.open_lane(LaneKind.GPU):
        while not is_ended():
            for one in weights:
                torch.mm(rows, one)
            begin()


def host_samples(times: Sequence[HostExpertsTime], described: Model, shown: Iterable[int] = ()) -> list[Sample]:
    """What ran beside nothing, as tasks of runs in which the host has all experts of a layer with such.

    What real runs have `shown`, by their tokens, is left to them: there a task does a little more.
    """
    layer = next((i for i, one in enumerate(described.layers) if one.num_experts), 0)
    task = Task(0, Op.HOST_EXPERTS, Lane(LaneKind.CPU, 0), 1, layer, 0)
    known = {*shown}
    alone = [one for one in times if one.beside is Beside.NOTHING and one.tokens not in known]
    return [Sample(_all_on_host(one.tokens), task, one.seconds.median, one.seconds.count) for one in alone]


def _all_on_host(requests: int) -> Condition:
    schedule = by_name("cpu-experts")
    return Condition(schedule, Policy.usual(schedule, requests, requests), 1, alone=True)
