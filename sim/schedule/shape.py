"""The shape of a pipeline, all that a schedule may know about the run it orders, and the traits of its system."""

from dataclasses import dataclass
from enum import StrEnum

from traces.errors import InputError, check_count


class Place(StrEnum):
    """Where decode attention runs."""

    CPU = "cpu"  # next to the KV cache in host memory
    GPU = "gpu"  # the KV cache comes over the link, or stays on the device


@dataclass(frozen=True, slots=True)
class System:
    """The traits of the system that a schedule is taken from."""

    attention: tuple[Place, ...]  # where it can run decode attention; the first is its usual place
    streams_non_experts: bool = False
    """Whether attention and other non-expert weights stream too, instead of staying on the device."""
    kv_on_device: bool = False  # whether the KV cache must stay on the device
    offloads_hidden: bool = True  # whether hidden states of waiting micro-batches leave the device during prefill
    paged: bool = False  # whether a layer's weights move in pages; else as one piece
    pinned_layers: int = 0
    """Layer-sized staging buffers in page-locked host memory; 0: weights are copied from pageable memory."""
    pins_weights: bool = False  # whether it usually keeps all streamed weights page-locked, where they fit
    pins_kv: bool = False
    """Whether the KV cache is copied at the page-locked rate: one that attention on the GPU loads is page-locked, and
    so are the buffers where what prefill stores beside attention on the CPU lands, on its way into the cache.
    """
    pins_activations: bool = True
    """Whether what goes to the host and back beside weights and KV cache is page-locked there."""
    one_batch: bool = False  # whether it runs all requests as one micro-batch
    prefill_barrier: bool = False  # whether all lanes meet after each (layer, micro-batch) of prefill
    splits_batch: bool = False
    """On several devices: each does the whole work of its part of the batch, instead of its share of every tensor.

    Data parallelism, and a pipeline of stages too: r stages that take turns on r parts of the batch each run 1/r of the
    layers r times a step, which is as much as all layers once.
    """
    expands_cache: bool = False
    """Whether attention on the CPU first copies the cache to 32 bits and to every query head, for want of a kernel that
    reads it where it is.
    """
    gathers_weights: bool = False
    """On several devices: each fetches an equal part of the weights from the host and the others from its peers."""


@dataclass(frozen=True, slots=True)
class PipelineShape:
    """Structure of one run: counts and residency, no sizes and no seconds.

    `streamed` says per layer whether some of its weights stream from the host each time the layer runs; with
    `streams_non_experts` these include what PreAttn needs. `streams_kv`: the KV cache lives on the host.
    `offloads_hidden`: in prefill, hidden states of waiting micro-batches live on the host. `weights_pinned`: all
    streamed weights live in page-locked host memory, so that they need no staging.
    """

    num_layers: int
    num_micro_batches: int
    num_pages: int
    attention: Place
    streamed: tuple[bool, ...]
    streams_non_experts: bool = False
    streams_kv: bool = True
    offloads_hidden: bool = True
    weights_pinned: bool = False

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_micro_batches", "num_pages"):
            check_count(name, getattr(self, name))
        if len(self.streamed) != self.num_layers:
            raise InputError(
                f"streamed has {len(self.streamed)} entries for {self.num_layers} layers: give one a layer"
            )
        if self.offloads_hidden and self.num_micro_batches == 1:
            raise InputError("offloads_hidden with one micro-batch: none waits while another computes, give False")
        if self.attention is Place.CPU and not self.streams_kv:
            raise InputError("attention on the cpu reads the KV cache in host memory: kv_on_device must be 0")

    def page_group(self, micro_batch: int) -> range:
        """Pages that travel beside one micro-batch: all pages are spread evenly over the micro-batches."""
        pages, parts = self.num_pages, self.num_micro_batches
        return range(micro_batch * pages // parts, (micro_batch + 1) * pages // parts)
