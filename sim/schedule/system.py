"""What a system does besides its order of issue: what stays where, what is page-locked, how devices share the work."""

from dataclasses import dataclass

from sim.schedule.shape import Place


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
    pins_kv: bool = False  # whether a KV cache on the host is page-locked; else it is copied at the pageable rate
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
