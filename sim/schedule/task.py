"""The vocabulary of every schedule: ops, lanes and tasks.

A task is pure structure: no sizes, no seconds, no tensors. The simulator gives it a duration, the engine gives it
tensors.
"""

from enum import StrEnum
from typing import NamedTuple

NONE = -1
"""The coordinate of a task that does not belong to a layer, a micro-batch or a page."""

WHOLE = -1
"""The page of a weight transfer that moves all streamed weights of a layer as one piece."""


DEFERRED = 1
"""The page of HostExperts and LoadOutput for the part of a layer's experts that counts in the next layer."""


class Op(StrEnum):
    """What a task does. The transfers carry the numbers of MoE-Lightning (section 4): D1 to D4."""

    PRE_ATTN = "PreAttn"  # norm, QKV projection, rotary embedding
    ATTN = "Attn"  # softmax attention over the KV cache
    POST_ATTN = "PostAttn"  # output projection, norm, router, experts
    HEAD = "Head"  # final norm, LM head, sampling, next embedding
    OFFLOAD_QKV = "OffloadQKV"  # D1: query, key, value to the host
    LOAD_HIDDEN = "LoadHidden"  # D2: hidden states (in decode: the attention output) to the device
    LOAD_WEIGHTS = "LoadWeights"  # D3: weights from pinned staging to the device
    LOAD_WEIGHTS_PAGEABLE = "LoadWeightsPageable"  # D3 without staging of our own: the driver copies through its relay
    LOAD_KV = "LoadKV"  # D4: KV cache of one micro-batch to the device
    STORE_KV = "StoreKV"  # new keys and values to the host
    STORE_HIDDEN = "StoreHidden"  # hidden states to the host
    PIN_WEIGHTS = "PinWeights"  # pageable host weights into pinned staging
    OUT_PROJ = "OutProj"  # PostAttn up to its first all-reduce, under tensor parallelism
    EXPERTS = "Experts"  # PostAttn from there to its second all-reduce
    ALL_REDUCE = "AllReduce"  # the sum over ranks
    ROUTE = "Route"  # output projection, norm, router: PostAttn without its experts
    OFFLOAD_TOKENS = "OffloadTokens"  # what goes into the experts of a group of micro-batches, to the host
    HOST_EXPERTS = "HostExperts"  # routed experts of a group beside their weights in host memory
    LOAD_OUTPUT = "LoadOutput"  # what comes out of them, to the device
    FETCH_EXPERTS = "FetchExperts"  # of the experts that wait on the host to be asked for, those that a group uses
    DEVICE_EXPERTS = "DeviceExperts"  # experts of a group on the device: resident, streamed, fetched and shared ones
    ENTER_HOST = "EnterHost"  # on the device, the hidden state with which layers on the host begin
    HOST_LAYER = "HostLayer"  # a whole layer of one micro-batch on the host, beside its weights and its KV cache

    __hash__ = str.__hash__  # Enum's own is a Python call, and ops are keys in the simulator's inner loop


USES_EXPERTS = frozenset({Op.POST_ATTN, Op.EXPERTS, Op.DEVICE_EXPERTS})
"""Ops that compute with experts on the device."""

ENDS_LAYER = USES_EXPERTS | {Op.LOAD_OUTPUT, Op.HOST_LAYER}
"""Ops of which the last one ends a layer."""


class LaneKind(StrEnum):
    """What executes a lane's tasks, one after the other."""

    GPU = "GPU"  # the device's compute stream
    CPU = "CPU"  # host compute
    H2D = "H2D"  # host to device copies
    D2H = "D2H"  # device to host copies
    PIN = "PIN"  # the host thread that fills pinned staging
    DISK = "DISK"  # storage to host
    NET = "NET"  # collectives between devices

    __hash__ = str.__hash__


class Lane(NamedTuple):
    """An in-order stream of work. A lane starts a task when it is free and the task's dependencies have ended."""

    kind: LaneKind
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.kind}" if self.rank == 0 else f"{self.kind}:{self.rank}"


GPU = Lane(LaneKind.GPU)
CPU = Lane(LaneKind.CPU)
H2D = Lane(LaneKind.H2D)
D2H = Lane(LaneKind.D2H)
PIN = Lane(LaneKind.PIN)
NET = Lane(LaneKind.NET)


class Task(NamedTuple):
    """One unit of work on one lane.

    `step` 0 is prefill, later steps are decode. `deps` are ids of earlier tasks on other lanes;
    earlier tasks of the same lane have always ended, because a lane works in order of issue.
    """

    id: int
    op: Op
    lane: Lane
    step: int
    layer: int = NONE
    micro_batch: int = NONE
    page: int = NONE
    deps: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, int, int, int, int, int]:
        """(op, rank, step, layer, micro-batch, page): names the task in every trace, simulated or real."""
        return (self.op.value, self.lane.rank, self.step, self.layer, self.micro_batch, self.page)
