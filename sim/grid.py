"""The best policy of a schedule by a plain grid: every policy on it that fits the memories, bounded, then estimated.

The grid spans μ, the number of micro-batches, experts on the device (none, or as many as fit), and where the schedule
leaves it open the KV cache's place and page-locked weights; attention runs where the schedule usually runs it.

A candidate's bound is its busiest lane's work; candidates are estimated in the order of their bounds until no bound is
better than the best estimate, so nothing that the bound does not exclude is skipped. Both look at the step in the
middle of the generation; the estimate runs a few layers and extends what one more of them takes to all layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sim.cost import CostModel
from sim.model import Layer
from sim.policy import Policy
from sim.recurrence import task_ends
from sim.schedule.base import Issues, Schedule
from sim.schedule.dependencies import Barrier
from sim.schedule.shape import Place
from sim.schedule.task import NONE, Lane, Op, Task
from sim.schedule.tensor_parallel import over_ranks
from sim.setup import Problem, Setup
from traces.errors import InputError

MICRO_BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
NUM_MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160)
FEW_LAYERS = 4
"""One to settle in, two that show the pace even where every other layer differs, and the last, which is cut short."""

LAYER_ENDS = (Op.POST_ATTN, Op.EXPERTS)


@dataclass(frozen=True, slots=True)
class _Candidate:
    setup: Setup
    bound_s: float

    @property
    def best_throughput(self) -> float:
        """Tokens per second that the bound allows."""
        return self.setup.batch.generated_tokens / self.bound_s


@dataclass(frozen=True, slots=True)
class GridChoice:
    """The best setup on the grid, and how many were considered."""

    setup: Setup
    num_feasible: int
    num_estimated: int


def best_on_grid(
    problem: Problem,
    schedule: Schedule,
    micro_batch_size: int | None = None,
    num_micro_batches: int | None = None,
) -> GridChoice:
    """The policy of highest estimated throughput; sizes that are given stay fixed.

    Raises InputError, with the smallest lack of memory on the grid, if no policy fits.
    """
    sizes = MICRO_BATCH_SIZES if micro_batch_size is None else (micro_batch_size,)
    counts = (1,) if schedule.one_batch else NUM_MICRO_BATCHES
    counts = counts if num_micro_batches is None else (num_micro_batches,)
    candidates = [_bounded(setup) for setup in _feasible(problem, schedule, sizes, counts)]
    candidates.sort(key=lambda one: -one.best_throughput)
    best, best_rate, estimated = candidates[0], 0.0, 0
    for candidate in candidates:
        if candidate.best_throughput <= best_rate:
            break
        estimated += 1
        rate = candidate.setup.batch.generated_tokens / _estimate_s(candidate.setup)
        if rate > best_rate:
            best, best_rate = candidate, rate
    return GridChoice(best.setup, len(candidates), estimated)


def _feasible(problem: Problem, schedule: Schedule, sizes: Iterable[int], counts: Iterable[int]) -> list[Setup]:
    found: list[Setup] = []
    nearest: Setup | None = None
    for policy in _grid(schedule, sizes, counts):
        setup = Setup(problem, schedule, policy)
        variants = (setup, _with_experts(setup))
        fitting = [one for one in variants if one is not None and not one.shortages]
        if not fitting and (nearest is None or _lack(setup) < _lack(nearest)):
            nearest = setup
        found.extend(fitting)
    if not found and nearest is not None:
        short = "; ".join(map(str, nearest.shortages))
        raise InputError(f"no policy on the grid fits; with {nearest.policy}, the nearest, {short}")
    return found


def _lack(setup: Setup) -> int:
    return sum(shortage.short_bytes for shortage in setup.shortages)


def _grid(schedule: Schedule, sizes: Iterable[int], counts: Iterable[int]) -> Iterator[Policy]:
    counts = tuple(counts)
    for size in sizes:
        for count in counts:
            for kv_on_device in _kv_shares(schedule):
                for pin_weights in {False, schedule.pins_weights}:
                    yield Policy.usual(schedule, size * count, size, kv_on_device=kv_on_device, pin_weights=pin_weights)


def _kv_shares(schedule: Schedule) -> tuple[float, ...]:
    if schedule.kv_on_device:
        return (1.0,)
    return (0.0,) if schedule.attention[0] is Place.CPU else (0.0, 1.0)


def _with_experts(setup: Setup) -> Setup | None:
    """The same policy with as many whole experts resident as the device's memory holds; None if not one.

    It may fit a host that the policy without them does not fit.
    """
    total = setup.problem.model.num_experts
    low, high, best = 0, 0 if _lacks_device(setup) else total, None
    while low < high:
        middle = (low + high + 1) // 2
        tried = replace(setup, policy=replace(setup.policy, experts_on_device=middle / total))
        if _lacks_device(tried):
            high = middle - 1
        else:
            low, best = middle, tried
    return best


def _lacks_device(setup: Setup) -> bool:
    return any(shortage.tier == "device" for shortage in setup.shortages)


def _few_layers(setup: Setup) -> Setup:
    """The same policy on the last few layers up to the last one with experts: there any pattern has settled."""
    model = setup.problem.model
    stop = 1 + max(at for at, layer in enumerate(model.layers) if layer.num_experts)
    return _on_layers(setup, model.layers[max(0, stop - FEW_LAYERS) : stop])


def _on_layers(setup: Setup, layers: tuple[Layer, ...]) -> Setup:
    return replace(setup, problem=replace(setup.problem, model=replace(setup.problem.model, layers=layers)))


def _bounded(setup: Setup) -> _Candidate:
    """Each lane's work on one layer of each kind, as often as the model has it."""
    model = setup.problem.model
    one_each, counts = _on_layers(setup, model.distinct_layers), model.layer_counts
    cost, schedule = one_each.costs(), one_each.schedule
    work = _lane_seconds(schedule.prefill(one_each.shape, more=False), cost, counts)
    if setup.last_step:
        decode = schedule.decode(one_each.shape, _middle_step(setup), more=True)
        for lane, seconds in _lane_seconds(decode, cost, counts).items():
            work[lane] = work.get(lane, 0.0) + seconds * setup.last_step
    return _Candidate(setup, max(work.values()))


def _middle_step(setup: Setup) -> int:
    return max(1, (1 + setup.last_step) // 2)


def _lane_seconds(issues: Issues, cost: CostModel, counts: Sequence[int]) -> dict[Lane, float]:
    """Each lane's work in seconds; what a layer does counts as often as there are such layers."""
    work: dict[Lane, float] = {}
    for issue in issues:
        if not isinstance(issue, Barrier):
            times = 1 if issue.layer == NONE else counts[issue.layer]
            work[issue.lane] = work.get(issue.lane, 0.0) + cost(Task(0, *issue)).duration_ns * 1e-9 * times
    return work


def _estimate_s(setup: Setup) -> float:
    """Seconds of the generation by the recurrence, without contention."""
    few = _few_layers(setup)
    cost, more_layers = few.costs(), setup.shape.num_layers - few.shape.num_layers
    prefill_s = _step_s(few, cost, 0, more_layers)
    if not few.last_step:
        return prefill_s
    return prefill_s + _step_s(few, cost, _middle_step(few), more_layers) * few.last_step


def _step_s(setup: Setup, cost: CostModel, step: int, more_layers: int) -> float:
    """One step behind the step before it, with `more_layers` that take what the last layers took.

    That is measured from the first micro-batch in the second layer to it in the last. In the first layer what was
    fetched during the heads of the step before has run out by then, and heads of this step come only after it.
    """
    begin = max(step - 1, min(step, 1))
    steps = setup.schedule.steps(setup.shape, begin, step + 1, last=step + 1)
    tasks = [task for one in over_ranks(steps, setup.problem.hardware.num_devices) for task in one]
    ends = task_ends(tasks, lambda task: cost(task).duration_ns)
    tokens_out = {task.step: ends[task.id] for task in tasks if task.op is Op.HEAD}
    first = [task for task in tasks if task.step == step and task.micro_batch == 0]
    layer_ends = {task.layer: ends[task.id] for task in first if task.op in LAYER_ENDS}
    last = setup.shape.num_layers - 1
    marginal = (layer_ends[last] - layer_ends[1]) / (last - 1) if more_layers else 0.0
    return (tokens_out[step] - tokens_out.get(step - 1, 0) + more_layers * marginal) * 1e-9
