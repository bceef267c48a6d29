"""The shape of a pipeline: all that a schedule may know about the run it orders."""

from dataclasses import dataclass
from enum import StrEnum

from traces.errors import InputError, check_count


class Place(StrEnum):
    """Where decode attention runs."""

    CPU = "cpu"  # next to the KV cache in host memory
    GPU = "gpu"  # the KV cache comes over the link, or stays on the device


@dataclass(frozen=True, slots=True)
class PipelineShape:
    """Structure of one run: counts and residency, no sizes and no seconds.

    `streamed` says per layer whether some of its weights stream from the host each time the layer runs; with
    `streams_non_experts` these include what PreAttn needs. `streams_kv`: the KV cache lives on the host.
    `offloads_hidden`: in prefill, hidden states of waiting micro-batches live on the host. `weights_pinned`: streamed
    weights live in page-locked host memory, so that they need no staging.
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
