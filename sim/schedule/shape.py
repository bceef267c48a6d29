"""The shape of a pipeline, all that a schedule may know about the run it orders, and the traits of its system."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntFlag, StrEnum
from typing import Any

from traces.errors import InputError, check_count


class Place(StrEnum):
    """Where decode attention runs."""

    CPU = "cpu"  # next to the KV cache in host memory
    GPU = "gpu"  # the KV cache comes over the link, or stays on the device


class ExpertPlace(IntFlag):
    """Where routed experts of a layer are when tokens come to them."""

    DEVICE = 1  # resident there
    STREAMED = 2  # come through the weight slots each time the layer runs, asked for or not
    FETCHED = 4  # come when the router has asked for them
    HOST = 8  # stay in host memory, and are computed there


@dataclass(frozen=True, slots=True)
class System:
    """The traits of the system that a schedule is taken from."""

    attention: tuple[Place, ...]  # where it can run decode attention; the first is its usual place
    streams_non_experts: bool = False
    """Whether attention and other non-expert weights stream too, instead of staying on the device."""
    mixes_attention: bool = False
    """Whether decode attention of some micro-batches may run on the device beside that of others on the CPU."""
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
    divides_layers: bool = False
    """On several devices: each has a range of layers, and they work one after the other, each as fast as it were alone.

    What waits for nothing but one request has no other order; what they hold, they hold together.
    """
    expands_cache: bool = False
    """Whether attention on the CPU first copies the cache to 32 bits and to every query head, for want of a kernel that
    reads it where it is.
    """
    gathers_weights: bool = False
    """On several devices: each fetches an equal part of the weights from the host and the others from its peers."""
    experts: ExpertPlace = ExpertPlace.DEVICE | ExpertPlace.STREAMED
    """Where it can have routed experts."""
    others: ExpertPlace = ExpertPlace.STREAMED
    """Which of these the experts are in that the policy gives no place."""
    whole_layers: bool = False
    """Whether it places the routed experts of a layer together."""
    prefill_experts: tuple[Place, ...] = (Place.GPU,)
    """Where it can compute, in prefill, the experts of the host; the first is its usual place."""
    fetches_modules: bool = False
    """Whether each module's weights are copied alone, when tokens come to it: so no expert that none of them uses."""
    runs_layers_on_host: bool = False
    """Whether it can leave whole layers to the host: attention, KV cache and experts."""
    mixes: bool = False
    """Whether a step can carry chunks of prompts in some micro-batches while the others decode."""
    caches_experts: bool = False
    """Whether the experts on the device are those used last, instead of always the same."""

    defers_experts: bool = False
    """Whether it can add what some experts of a layer make to the output of the next layer: then others wait less."""

    @property
    def keeps_prompts_apart(self) -> str:
        """Why none of its steps carries prompts beside decode, in words; nothing if they can."""
        if self.mixes:
            return ""
        if self.kv_on_device:
            return "its KV cache stays on the device, and a stream's blocks are on the host"
        return "it takes a batch through every layer as one, as the system it is taken from does"

    @property
    def splits_experts(self) -> bool:
        """Whether it computes experts apart from the rest of a layer, where each of them is."""
        return self.experts != ExpertPlace.DEVICE | ExpertPlace.STREAMED


MOST_PIECES = 40_000
"""Micro-batches, or pages, of all layers of a step: the planner looks at a few hundred of a hundred layers."""


@dataclass(frozen=True, slots=True)
class PipelineShape:
    """Structure of one run: counts and residency, no sizes and no seconds.

    `streamed` says per layer whether some of its weights stream from the host each time the layer runs; with
    `streams_non_experts` these include what PreAttn needs. `streams_kv`: the KV cache lives on the host.
    `offloads_hidden`: in prefill, hidden states of waiting micro-batches live on the host. `weights_pinned`: all
    streamed weights live in page-locked host memory, so that they need no staging.

    `experts`, of a system that splits them: per layer, all places where decode finds some of its routed experts; none
    in a layer that has none. Those of `num_groups` micro-batches each are computed together; `prefill_experts` says
    where prefill computes the experts of the host, to which end on the GPU `streamed_in_prefill` stream. Of
    `layers_on_host`, from the first number to before the second, the host computes all, in prefill too.
    `defers_experts`: in decode the host computes a part of its experts late (see `defers`).

    With `attention` on the CPU, `attending_on_device` of the micro-batches, spread evenly, attend on the device all the
    same, beside their KV cache, which stays there.

    In a stream of requests the first `num_prompts` of the micro-batches carry chunks of prompts in every step from 1
    on, while the others decode. Who attends on the device there is one of those others, and its KV cache, which is on
    the host like that of all, comes over the link.
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
    experts: tuple[ExpertPlace, ...] = ()
    num_groups: int = 1
    prefill_experts: Place = Place.GPU
    streamed_in_prefill: tuple[bool, ...] = ()
    layers_on_host: tuple[int, int] = (0, 0)
    attending_on_device: int = 0
    defers_experts: bool = False
    num_prompts: int = 0

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_micro_batches", "num_pages", "num_groups"):
            check_count(name, getattr(self, name))
        a_layer = max(self.num_micro_batches, self.num_pages)
        if self.num_layers * a_layer > MOST_PIECES:
            raise InputError(
                f"{a_layer:,} micro-batches or pages of {self.num_layers} layers are too many for a step: give at most "
                f"{MOST_PIECES // self.num_layers:,}"
            )
        for name in ("streamed", "experts", "streamed_in_prefill"):
            given = len(getattr(self, name))
            if given != self.num_layers and (given or name == "streamed"):
                raise InputError(f"{name} has {given} entries for {self.num_layers} layers: give one a layer")
        if self.num_groups > self.num_micro_batches:
            raise InputError(f"num_groups: {self.num_groups} of {self.num_micro_batches} micro-batches: give fewer")
        if self.offloads_hidden and self.num_micro_batches == 1:
            raise InputError("offloads_hidden with one micro-batch: none waits while another computes, give False")
        first, stop = self.layers_on_host
        if not 0 <= first <= stop <= self.num_layers:
            raise InputError(f"layers_on_host: {[first, stop]} is no range of the pipeline's {self.num_layers} layers")
        if first < stop:
            self._check_beside_host_layers()
        if self.attention is Place.CPU and not self.streams_kv:
            raise InputError("attention on the cpu reads the KV cache in host memory: kv_on_device must be 0")
        if not 0 <= self.num_prompts < self.num_micro_batches:
            raise InputError(
                f"num_prompts: {self.num_prompts} of {self.num_micro_batches} micro-batches: at least one must decode"
            )
        most = self.num_decoding if self.attention is Place.CPU else 0
        if not 0 <= self.attending_on_device <= most:
            some = f"attending_on_device: {self.attending_on_device} of {self.num_decoding} micro-batches"
            raise InputError(f"{some} beside attention on the {self.attention}: give at most {most}")

    def _check_beside_host_layers(self) -> None:
        refused = {
            "offloads_hidden": "which exchange hidden states themselves: give False",
            "num_prompts": "which are prefilled whole there, not in a stream: leave those out",
            "attending_on_device": "which keep the KV cache of every micro-batch on the host: give 0",
            "defers_experts": "which hand nothing late to the next layer: give False",
        }
        for name, why in refused.items():
            if getattr(self, name):
                raise InputError(f"{name}: {getattr(self, name)} beside layers_on_host, {why}")

    @property
    def num_decoding(self) -> int:
        """Micro-batches that decode in steps after the first."""
        return self.num_micro_batches - self.num_prompts

    def has_prompts(self, step: int, micro_batch: int) -> bool:
        """Whether a micro-batch carries prompts in a step: all do in prefill, the first ones in a stream."""
        return step == 0 or 0 <= micro_batch < self.num_prompts

    def attends(self, micro_batch: int) -> Place:
        """Where a micro-batch attends in steps after the first: prompts always on the GPU."""
        on_gpu = micro_batch < self.num_prompts or self.attends_beside_others(micro_batch)
        return Place.GPU if on_gpu else self.attention

    def kv_on_host(self, micro_batch: int) -> bool:
        """Whether the KV cache of a micro-batch, or of some of its requests, lives on the host."""
        return self.streams_kv and (self.num_prompts > 0 or not self.attends_beside_others(micro_batch))

    @property
    def over_link(self) -> list[int]:
        """In a stream, who attends on the device while others attend on the host, to a KV cache that comes there."""
        some = self.num_prompts and self.attending_on_device
        return [j for j in range(self.num_micro_batches) if self.attends_beside_others(j)] if some else []

    def attends_beside_others(self, micro_batch: int) -> bool:
        """Whether a micro-batch attends on the device while others that decode attend on the host."""
        some, parts, at = self.attending_on_device, self.num_decoding, micro_batch - self.num_prompts
        return at >= 0 and (at + 1) * some // parts > at * some // parts

    @property
    def runs_on_host(self) -> bool:
        """Whether any layer runs on the host whole."""
        return self.layers_on_host[0] < self.layers_on_host[1]

    @property
    def layers_on_device(self) -> list[int]:
        """Those that do not run on the host whole."""
        first, stop = self.layers_on_host
        return [*range(first), *range(stop, self.num_layers)] if first < stop else [*range(self.num_layers)]

    @property
    def first_on_device(self) -> int:
        """The first of them; the number of layers if there is none."""
        first, stop = self.layers_on_host
        return stop if first == 0 else 0

    def page_group(self, micro_batch: int) -> range:
        """Pages that travel beside one micro-batch: all pages are spread evenly over the micro-batches."""
        pages, parts = self.num_pages, self.num_micro_batches
        return range(micro_batch * pages // parts, (micro_batch + 1) * pages // parts)

    def streams(self, step: int, layer: int) -> bool:
        """Whether weights of a layer stream in a step; there may be no such layer."""
        if layer == self.num_layers:
            return False
        return self.streamed_in_prefill[layer] if step == 0 and self.streamed_in_prefill else self.streamed[layer]

    def splits_experts(self, step: int) -> bool:
        """Whether a step computes experts where they are, apart from the rest of their layers."""
        return bool(self.experts) and (step > 0 or self.prefill_experts is Place.CPU)

    def has_experts(self, layer: int, places: ExpertPlace) -> bool:
        """Whether a layer has routed experts in any of these places."""
        return bool(self.experts) and bool(self.experts[layer] & places)

    def defers(self, step: int, layer: int) -> bool:
        """Whether a part of a layer's experts counts in the next layer with experts; the last one defers nothing."""
        late = self.defers_experts and step > 0 and self.has_experts(layer, ExpertPlace.HOST)
        return late and any(self.experts[layer + 1 :])

    def deferred_to(self, step: int, layer: int) -> int | None:
        """The layer before, a part of whose experts counts in this one."""
        if not self.defers_experts or not self.experts[layer]:
            return None
        before = next((one for one in reversed(range(layer)) if self.experts[one]), None)
        return before if before is not None and self.defers(step, before) else None

    def side(self, step: int, layer: Any) -> Any:
        """Which of two places on the host a layer's tokens wait in for experts: with deferral layers take turns."""
        return layer % 2 if self.defers_experts and step > 0 else 0 * layer

    def group(self, number: int) -> range:
        """The micro-batches of a group: all are spread evenly over the groups."""
        n, groups = self.num_micro_batches, self.num_groups
        return range(number * n // groups, (number + 1) * n // groups)

    def beside_prompts(self, num_prompts: int, attending_on_device: int = 0) -> "PipelineShape":
        """The same micro-batches in a stream: the first carry prompts, and of the others some attend on the device."""
        return replace(self, num_prompts=num_prompts, attending_on_device=attending_on_device, offloads_hidden=False)

    def some_layers(self, kept: Sequence[int]) -> "PipelineShape":
        """The same pipeline with these layers only."""
        streamed = tuple(self.streamed[layer] for layer in kept)
        experts = tuple(self.experts[layer] for layer in kept if self.experts)
        in_prefill = tuple(self.streamed_in_prefill[layer] for layer in kept if self.streamed_in_prefill)
        first, stop = (sum(layer < edge for layer in kept) for edge in self.layers_on_host)
        return replace(
            self,
            num_layers=len(kept),
            streamed=streamed,
            experts=experts,
            streamed_in_prefill=in_prefill,
            layers_on_host=(first, stop),
        )
