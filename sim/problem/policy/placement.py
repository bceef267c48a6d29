"""The routed experts of a model in their places, and what of them moves, in bytes."""

from dataclasses import dataclass, field
from functools import lru_cache

from sim.problem.model import Layer, Model
from sim.problem.policy.policy import Policy
from sim.problem.policy.splits import Shares, Split, splits_of
from sim.problem.widths import Widths
from sim.schedule import ExpertPlace, Place, Schedule, System


@dataclass(frozen=True, slots=True)
class Placement:
    """The experts of a model with their bytes, placed by a policy.

    Bytes are of all devices together.
    """

    model: Model
    splits: tuple[Split, ...]
    widths: Widths
    streams_non_experts: bool
    prefill_on_host: bool
    """Whether prefill leaves the host's experts on the host."""
    kinds: tuple[int, ...] = field(init=False)
    """Per layer a number that it shares with layers of the same kind whose experts are placed alike."""
    distinct: tuple[tuple[Layer, Split], ...] = field(init=False)
    """By that number."""
    counts: tuple[int, ...] = field(init=False)
    """How many layers have it."""
    place_bytes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Routed experts of all layers by their place, in the order of `ExpertPlace`."""

    def __post_init__(self) -> None:
        found: dict[tuple[int, Split], int] = {}
        kinds = [found.setdefault(one, len(found)) for one in zip(self.model.layer_kinds, self.splits, strict=True)]
        object.__setattr__(self, "kinds", tuple(kinds))
        distinct = tuple((self.model.distinct_layers[kind], split) for kind, split in found)
        object.__setattr__(self, "distinct", distinct)
        object.__setattr__(self, "counts", tuple(kinds.count(kind) for kind in range(len(found))))
        object.__setattr__(self, "place_bytes", self._place_bytes())

    def _place_bytes(self) -> tuple[int, ...]:
        total = [0, 0, 0, 0]
        for (layer, split), count in zip(self.distinct, self.counts, strict=True):
            one = count * layer.expert_bytes(self.widths.experts)
            for place, experts in enumerate((split.resident, split.streamed, split.fetched, split.on_host)):
                total[place] += experts * one
        return tuple(total)

    @staticmethod
    def of(policy: Policy, schedule: Schedule, model: Model) -> "Placement":
        """Where a policy has a model's experts under a schedule."""
        system = schedule.system
        streams = system.streams_non_experts or policy.stream_non_experts
        on_host = policy.prefills_on(system) is Place.CPU
        return _placement(Shares.of(policy), system, model, policy.widths(model), streams, on_host)

    def streamed_bytes(self, kind: int, *, in_prefill: bool = False) -> int:
        """What of a layer comes over the link each time it runs, asked for or not."""
        layer, split = self.distinct[kind]
        if split.layer_on_host:
            return 0
        experts = split.streamed
        if in_prefill and not self.prefill_on_host:
            experts += split.fetched + split.on_host
        others = layer.non_expert_bytes(self.widths) if self.streams_non_experts else 0
        return experts * layer.expert_bytes(self.widths.experts) + others

    def moved_bytes(self, kind: int) -> int:
        """What of a layer ever comes over the link: of these bytes a share may be page-locked, the first ones first.

        The streamed ones come first, then those that are fetched, then those of the host.
        """
        layer, split = self.distinct[kind]
        fetched = split.fetched * self.prefill_on_host * layer.expert_bytes(self.widths.experts)
        return self.streamed_bytes(kind, in_prefill=True) + fetched

    def non_expert_bytes_on_host(self) -> int:
        """What layers that run on the host have beside routed experts."""
        layers = (
            count * layer.non_expert_bytes(self.widths)
            for (layer, split), count in zip(self.distinct, self.counts, strict=True)
            if split.layer_on_host
        )
        return sum(layers)

    def experts_bytes(self, places: ExpertPlace) -> int:
        """Routed experts of all layers that are in these places."""
        wanted = int(places)
        return sum(size for bit, size in enumerate(self.place_bytes) if wanted >> bit & 1)


@lru_cache(maxsize=4096)
def _placement(
    shares: Shares, system: System, model: Model, widths: Widths, streams_non_experts: bool, prefill_on_host: bool
) -> Placement:
    counts = tuple(layer.num_experts for layer in model.layers)
    return Placement(model, splits_of(shares, system, counts), widths, streams_non_experts, prefill_on_host)
