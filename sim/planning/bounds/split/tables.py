"""What is asked once of batches, groups of them and mixes of places, of which all policies are put together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.planning.bounds.durations import DECODE_OPS, MEAN, PREFILL_OPS, Measure, MicroBatchTimes, segments, task_s
from sim.planning.bounds.experts import ExpertTimes
from sim.planning.policies import PREFILLS, Floats, Frame, Ints, SplitCandidates
from sim.schedule import Barrier, Op, Place


class Batches:
    """What micro-batches take outside of experts, added up over layers. Tables are [batch, segment]."""

    def __init__(self, space: SplitCandidates, measure: Measure) -> None:
        model = space.problem.model
        self.segments = segments(space.problem)
        steps = [step for step, _ in self.segments]
        self.weights = np.array([count for _, count in self.segments], dtype=float)
        self._counts = np.array(model.layer_counts, dtype=float)
        self._moe = np.array([layer.num_experts > 0 for layer in model.distinct_layers])
        one_each = replace(model, layers=model.distinct_layers)
        found: dict[tuple[object, ...], int] = {}
        self.of_frame = np.array([found.setdefault(_key(one), len(found)) for one in space.frames])
        setups = [space.frames[int(np.flatnonzero(self.of_frame == at)[0])].setup for at in range(len(found))]
        known: dict[tuple[object, ...], list[float]] = {}
        self.n = np.array([len(one.batch.micro_batches) for one in setups], dtype=float)
        self.on_cpu = np.array([one.shape.attention is Place.CPU for one in setups])
        tables = {"prefill": ((*PREFILL_OPS, Op.ROUTE), [0]), "decode": ((*DECODE_OPS, Op.ROUTE), steps)}
        kinds = len(self._counts)
        self._tables = {
            (phase, op): np.zeros((len(setups), 2, kinds, len(at))) for phase, (ops, at) in tables.items() for op in ops
        }
        for number, setup in enumerate(setups):
            asked = MicroBatchTimes(setup, one_each, known, measure)
            for phase, (ops, at) in tables.items():
                for op in ops if at else ():
                    if asked.happens(op, in_prefill=phase == "prefill"):
                        self._tables[phase, op][number] = asked.durations(op, at)[:2]

    def of(self, phase: str, op: Op, which: int = MEAN) -> Floats:
        """One micro-batch through all layers; PostAttn of those without experts, Route of the others."""
        table = self._tables[phase, op][:, which]
        if op is Op.HEAD:
            return np.asarray(table[:, 0])
        counts = self._counts
        if op is Op.ROUTE or (op is Op.POST_ATTN and phase == "decode"):
            counts = counts * (self._moe if op is Op.ROUTE else ~self._moe)
        return np.asarray(np.einsum("bks,k->bs", table, counts))

    def dense(self, phase: str) -> Floats:
        """PostAttn of layers without experts."""
        table = self._tables[phase, Op.POST_ATTN][:, MEAN]
        return np.asarray(np.einsum("bks,k->bs", table, self._counts * ~self._moe))

    def first_layer(self, phase: str, *ops: Op) -> Floats:
        """Some tasks of one micro-batch in the most expensive layer."""
        return np.asarray(np.sum([self._tables[phase, op][:, MEAN] for op in ops], axis=0).max(axis=1))


def _key(one: Frame) -> tuple[object, ...]:
    policy, prefill = one.setup.policy, one.prefill
    return policy.attention, policy.kv_on_device, policy.batch_size, policy.micro_batch_size, prefill


@dataclass(frozen=True, slots=True)
class TokenGroups:
    """Different numbers of tokens of the groups of each frame: which of all numbers, and how many groups have it."""

    which: Ints
    """[frame, different]."""
    times: Floats
    largest: Ints
    """Which number of tokens the group of most tokens has. [frame]."""

    @staticmethod
    def of(of_frames: Sequence[tuple[tuple[int, int], ...]], numbers: dict[int, int]) -> "TokenGroups":
        """Numbers that are new are given the next index."""
        width = max(map(len, of_frames))
        which, times = np.zeros((len(of_frames), width), dtype=np.int64), np.zeros((len(of_frames), width))
        for at, groups in enumerate(of_frames):
            for place, (tokens, count) in enumerate(sorted(groups, reverse=True)):
                which[at, place], times[at, place] = numbers.setdefault(tokens, len(numbers)), count
        return TokenGroups(which, times, which[:, 0].copy())


class Splits:
    """How experts of a mix's kinds of layers are placed. All [mix, kind]; kinds that lack have no layers."""

    def __init__(self, space: SplitCandidates) -> None:
        placements = space.mixes.placements
        width = space.mixes.layers.shape[1]

        def table(number: object) -> Ints:
            found = np.zeros((len(placements), width), dtype=np.int64)
            for at, one in enumerate(placements):
                found[at, : len(one.distinct)] = [number(layer, split) for layer, split in one.distinct]  # type: ignore[operator]
            return found

        self.total = table(lambda layer, _: layer.num_experts)
        self.resident = table(lambda _, split: split.resident)
        self.streamed = table(lambda _, split: split.streamed)
        self.fetched = table(lambda _, split: split.fetched)
        self.host = table(lambda _, split: split.on_host)
        sizes = [[one.streamed_bytes(kind) for kind in range(len(one.distinct))] for one in placements]
        self.streamed_bytes = np.array([one + [0] * (width - len(one)) for one in sizes])


@dataclass(frozen=True, slots=True)
class CopyCosts:
    """What copies of streamed weights take: each for itself, and a byte: page-locked, pageable, and into staging."""

    each: float
    locked: float
    pageable: float
    pin_each: float
    pin: float


class Tables:
    """What is asked once of all that rows are made of."""

    def __init__(self, space: SplitCandidates, copies: CopyCosts, measure: Measure = task_s) -> None:
        self.space, self.batches, self.splits = space, Batches(space, measure), Splits(space)
        numbers: dict[int, int] = {}
        frames = space.frames
        self.groups = TokenGroups.of([one.tokens for one in frames], numbers)
        prompts = [one.prompts if one.prefill else one.tokens for one in frames]
        self.prompt_groups = TokenGroups.of(prompts, numbers)
        self.of_group = np.array([-(-len(one.setup.batch.micro_batches) // one.groups) for one in frames], dtype=float)
        self.num_groups = np.array([one.groups for one in frames], dtype=float)
        self.on_host = np.array([one.prefill == PREFILLS.index(Place.CPU) for one in frames])
        layer = next(layer for layer in space.problem.model.distinct_layers if layer.num_experts)
        self.times = ExpertTimes(frames[0].setup, layer, list(numbers), measure)
        setup = frames[0].setup
        self.copies, self.ranks = copies, float(setup.num_ranks)
        self.stages = space.schedule.system.pinned_layers > 0
        self.streams_all = setup.shape.streams_non_experts
        self.meets = any(isinstance(one, Barrier) for one in setup.schedule.prefill(setup.shape, False))
