"""The numbers of a policy, and what each of them may be whatever the schedule."""

from dataclasses import dataclass

from sim.problem.policy.splits import ROUNDING
from sim.problem.widths import MAX_BITS, MIN_BITS, WeightBits, check_weight_bits
from sim.schedule import Place
from traces.errors import InputError, check_choice, check_count, check_flag, check_range, check_share, shown

MOST_REQUESTS = 10**6
"""Of a batch: those that fit a large host have some tens of thousands."""


@dataclass(frozen=True, slots=True)
class PolicyFields:
    """The paper's (N, μ, A_g, F_g, r_w, r_c) with pages and widths (MoE-Lightning section 4.2).

    `experts_on_device` is r_w: of a layer with E routed experts, int(E · r_w) whole ones stay on the device. Where the
    schedule has such places, `experts_on_host` is the share that the host computes in decode, and `experts_fetched` the
    share that comes when it is asked for; `deal_experts` counts the shares over all layers together, so that layers
    differ by one expert at most. In `host_layers`, from the first number to before the second, the host computes all.
    `layers_on_host`, such a range too, run on the host whole, with their KV cache, in prefill as in decode.
    Experts are computed for `groups` of micro-batches at once (default: for each alone); `prefill_experts` says where
    prefill computes those of the host (default: where the system does). With `stream_non_experts` the rest of a layer
    streams, too.
    `defer_experts` changes the model's outputs: in decode what so many of each token's top k experts make, the least
    weighted ones, as far as the host computes them, counts in the next layer with experts instead of their own.
    `kv_on_device` is r_c: of each micro-batch's n requests, int(n · r_c) whole ones keep their KV cache on the device.
    With attention on the CPU, `attention_on_device` is the share of the n micro-batches, int(n · share) whole ones,
    that attend on the device all the same; all of their KV cache stays there.
    `pages` a layer's streamed weights travel in: None for one per micro-batch.
    `pin_weights`: the share of each layer's streamed bytes, from the first on, that lies in page-locked memory; what
    lies behind it is copied through staging. True and False stand for all and nothing.
    `weight_bits` and `kv_bits` are the widths of stored numbers; None keeps the model's own width. A number as
    `weight_bits` is that of routed experts; a table, or a text such as "experts=4.5,rest=8", sets kinds of tensors
    apart; a name such as "Q4_K_M" gives each kind what llama.cpp's quantiser does.
    Raises InputError naming the field.
    """

    batch_size: int
    micro_batch_size: int
    attention: Place = Place.CPU
    experts_on_device: float = 0.0
    kv_on_device: float = 0.0
    pages: int | None = None
    pin_weights: float = 0.0
    weight_bits: WeightBits | None = None
    kv_bits: float | None = None
    experts_on_host: float = 0.0
    experts_fetched: float = 0.0
    deal_experts: bool = False
    host_layers: tuple[int, int] | None = None
    groups: int | None = None
    prefill_experts: Place | None = None
    stream_non_experts: bool = False
    layers_on_host: tuple[int, int] | None = None
    attention_on_device: float = 0.0
    defer_experts: int = 0

    def __post_init__(self) -> None:
        check_count("batch-size", self.batch_size, most=MOST_REQUESTS)
        check_count("micro-batch-size", self.micro_batch_size, most=MOST_REQUESTS)
        if self.pages is not None:
            check_count("pages", self.pages)
        for name in ("experts_on_device", "kv_on_device", "experts_on_host", "experts_fetched", "attention_on_device"):
            check_share(name, getattr(self, name))
        self._check_experts()
        object.__setattr__(self, "weight_bits", check_weight_bits("weight_bits", self.weight_bits))
        if self.kv_bits is not None:
            check_range("kv_bits", self.kv_bits, MIN_BITS, MAX_BITS, "a width in bits")
        object.__setattr__(self, "pin_weights", _share_of_flag("pin_weights", self.pin_weights))
        for name in ("attention", "prefill_experts"):
            if getattr(self, name) is not None or name == "attention":
                object.__setattr__(self, name, Place(check_choice(name, getattr(self, name), Place)))
        if self.micro_batch_size > self.batch_size:
            object.__setattr__(self, "micro_batch_size", self.batch_size)

    def _check_experts(self) -> None:
        given = (self.experts_on_device, self.experts_on_host, self.experts_fetched)
        if sum(given) > 1 + ROUNDING:
            shares = " + ".join(f"{share:g}" for share in given)
            raise InputError(
                f"experts_on_device + experts_on_host + experts_fetched: {shares} is more than all: give less"
            )
        for name in ("deal_experts", "stream_non_experts"):
            check_flag(name, getattr(self, name))
        if self.groups is not None:
            check_count("groups", self.groups)
        for name in ("host_layers", "layers_on_host"):
            object.__setattr__(self, name, _range_of_layers(name, getattr(self, name)))
        check_count("defer_experts", self.defer_experts, least=0)


def _share_of_flag(name: str, value: object) -> float:
    """A share; a truth is all of it or nothing. Refuses anything else."""
    return float(value if isinstance(value, bool) else check_share(name, value))


def _range_of_layers(name: str, layers: object) -> tuple[int, int] | None:
    """Two numbers of layers; refuses anything else."""
    if layers is None:
        return None
    if isinstance(layers, list | tuple) and [type(one) for one in layers] == [int, int] and 0 <= layers[0] <= layers[1]:
        return layers[0], layers[1]
    raise InputError(f"{name}: {shown(layers)} is not allowed; give two numbers of layers, [first, stop]")
