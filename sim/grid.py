"""The best policy of a schedule by a plain grid: every policy on it that fits the memories, bounded, then estimated.

The grid spans μ, the number of micro-batches, experts on the device (none, or as many as fit), and where the schedule
leaves it open the KV cache's place and page-locked weights; attention runs where the schedule usually runs it.

A candidate's bound is its busiest lane's work; candidates are estimated in the order of their bounds until no bound is
better than the best estimate, so nothing that the bound does not exclude is skipped. Both look at a few layers, evenly
picked where layers differ, and at the step in the middle of the generation; the estimate extends what one more layer
takes to all layers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sim.cost import CostModel
from sim.policy import Policy
from sim.recurrence import task_ends
from sim.schedule.base import Issues, Schedule
from sim.schedule.dependencies import Barrier
from sim.schedule.shape import Place
from sim.schedule.task import Lane, Op, Task
from sim.schedule.tensor_parallel import over_ranks
from sim.setup import Problem, Setup
from traces.errors import InputError

MICRO_BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
NUM_MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160)
FEW_LAYERS = 3
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
        if setup.shortages:
            if nearest is None or _lack(setup) < _lack(nearest):
                nearest = setup
            continue
        found.append(setup)
        filled = _with_experts(setup)
        if filled is not None:
            found.append(filled)
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
    """The same policy with as many whole experts resident as the device's memory holds; None if not one."""
    total = setup.problem.model.num_experts
    low, best = 0, None
    high = total
    while low < high:
        middle = (low + high + 1) // 2
        tried = replace(setup, policy=replace(setup.policy, experts_on_device=middle / total))
        if tried.shortages:
            high = middle - 1
        else:
            low, best = middle, tried
    return best


def _few_layers(setup: Setup, most: int) -> Setup:
    """The same policy on a model of at most so many of the layers."""
    model = setup.problem.model
    picked = min(most, model.num_layers)
    layers = tuple(model.layers[i * model.num_layers // picked] for i in range(picked))
    if not any(layer.num_experts for layer in layers):
        layers = model.layers[-picked:]
    return replace(setup, problem=replace(setup.problem, model=replace(model, layers=layers)))


def _bounded(setup: Setup) -> _Candidate:
    model = setup.problem.model
    few = _few_layers(setup, 1 if len(model.distinct_layers) == 1 else FEW_LAYERS)
    scale = model.num_layers / few.shape.num_layers
    cost, schedule = few.costs(), few.schedule
    work = _lane_seconds(schedule.prefill(few.shape, more=False), cost, scale)
    if setup.last_step:
        middle = _middle_step(setup)
        for lane, seconds in _lane_seconds(schedule.decode(few.shape, middle, more=True), cost, scale).items():
            work[lane] = work.get(lane, 0.0) + seconds * setup.last_step
    return _Candidate(setup, max(work.values()))


def _middle_step(setup: Setup) -> int:
    return max(1, (1 + setup.last_step) // 2)


def _lane_seconds(issues: Issues, cost: CostModel, scale: float) -> dict[Lane, float]:
    """Each lane's work in seconds; what a layer does is scaled up to all layers."""
    work: dict[Lane, float] = {}
    for issue in issues:
        if not isinstance(issue, Barrier):
            seconds = cost(Task(0, *issue)).duration_ns * 1e-9 * (1.0 if issue.op is Op.HEAD else scale)
            work[issue.lane] = work.get(issue.lane, 0.0) + seconds
    return work


def _estimate_s(setup: Setup) -> float:
    """Seconds of the generation by the recurrence, without contention."""
    few = _few_layers(setup, FEW_LAYERS)
    cost, more_layers = few.costs(), setup.shape.num_layers - few.shape.num_layers
    prefill_s = _step_s(few, cost, 0, more_layers)
    if not few.last_step:
        return prefill_s
    return prefill_s + _step_s(few, cost, _middle_step(few), more_layers) * few.last_step


def _step_s(setup: Setup, cost: CostModel, step: int, more_layers: int) -> float:
    """One step behind the step before it, with `more_layers` that take what the last layers took."""
    first = max(step - 1, min(step, 1))
    steps = setup.schedule.steps(setup.shape, first, step + 1, last=step + 1)
    tasks = [task for one in over_ranks(steps, setup.problem.hardware.num_devices) for task in one]
    ends = task_ends(tasks, lambda task: cost(task).duration_ns)
    tokens_out = {task.step: ends[task.id] for task in tasks if task.op is Op.HEAD}
    layer_ends = {task.layer: ends[task.id] for task in tasks if task.op in LAYER_ENDS and task.step == step}
    last = setup.shape.num_layers - 1
    marginal = (layer_ends[last] - layer_ends[0]) / last if last else tokens_out[step]
    return (tokens_out[step] - tokens_out.get(step - 1, 0) + more_layers * marginal) * 1e-9
