"""From a published rate to a setup: where the experts are, what runs, and what the row left open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.comparison import usual_setup
from sim.cost import Setup
from sim.problem import Hardware, Model, Policy, Problem, Routing, Workload
from sim.schedule import Schedule, by_name
from traces.errors import InputError
from validation.published.latency.known import (
    DATASETS,
    POPULARITY,
    ServingSystem,
    load_machine,
    name_of_machine,
    named_model,
    named_system,
)
from validation.published.latency.placement import (
    Chosen,
    Placing,
    options_in_words,
    placement_in_words,
    read_placement,
)
from validation.published.latency.rows import LatencyRow, Metric

USUAL_PROMPT, USUAL_GENERATED = 512, 128
"""Tokens of a run of which nothing is said: llama-bench's own."""


@dataclass(frozen=True, slots=True)
class PosedRate:
    """A row made ready to simulate, what it asks for, and what was assumed about it."""

    setup: Setup
    metric: Metric
    assumed: str = ""


def pose_rate(
    row: LatencyRow, machine: Hardware | None = None, exponents: Mapping[str, float] = POPULARITY
) -> PosedRate:
    """Make a row ready; `machine` and `exponents` stand for the preset and for what is known of experts' popularity.

    Raises InputError where the row asks for what is unknown or cannot be.
    """
    options = options_in_words(row.policy)
    placing = read_placement(row.placement) if row.placement else placement_in_words(row.policy)
    system, model = named_system(row), named_model(row, options)
    metric = Metric.DECODE if row.metric is Metric.THROUGHPUT and system.throughput == "decode" else row.metric
    if metric is Metric.PREFILL and placing.device_slots and not system.slots_serve_prefill:
        placing = Placing(host_layers=model.num_layers)
    workload, assumed = _workload(row, metric, options.piece_tokens or system.piece)
    hardware = machine or load_machine(name_of_machine(row, options))
    problem = Problem(model, hardware, workload, _routing(placing, model, exponents))
    setup = _setup(problem, system, placing, row.num_requests)
    if not row.machine and not row.cpu:
        assumed.append(f"machine {hardware.name}")
    if metric is not row.metric:
        assumed.append(f"{row.metric} read as {metric}")
    return PosedRate(setup, metric, "; ".join(assumed))


def _workload(row: LatencyRow, metric: Metric, piece: int | None) -> tuple[Workload, list[str]]:
    """Prompts and what is generated. Of a prompt that goes through in pieces, one piece stands for all."""
    if row.dataset and row.dataset not in DATASETS:
        known = f"{', '.join(DATASETS)}, or a number of tokens"
        raise InputError(f"prompt_len: {row.dataset!r} is no known set of prompts; known: {known}")
    usual = DATASETS.get(row.dataset, {})
    prompt = row.prompt_len or usual.get("prompt")
    if metric is Metric.PREFILL:
        tokens = min(prompt or piece or USUAL_PROMPT, piece or prompt or USUAL_PROMPT)
        return Workload.fixed(tokens, 1), [] if prompt else [f"prompts of {tokens} tokens"]
    generated = row.gen_len or usual.get("generated")
    workload = Workload.fixed(prompt or USUAL_PROMPT, generated or USUAL_GENERATED)
    told = ((prompt, f"prompts of {USUAL_PROMPT} tokens"), (generated, f"{USUAL_GENERATED} tokens generated"))
    return workload, [what for given, what in told if not given]


def _routing(placing: Placing, model: Model, exponents: Mapping[str, float]) -> Routing:
    """Popularity counts where experts are placed by it; experts placed at random are as popular as any."""
    if placing.chosen is not Chosen.FREQUENCY:
        return Routing()
    return Routing(exponents.get(model.name, 0.0))


def _setup(problem: Problem, system: ServingSystem, placing: Placing, num_requests: int) -> Setup:
    """All requests in one micro-batch, as none of these systems has several."""
    model, splits = problem.model, placing.device_share is not None or placing.device_slots is not None
    schedule = by_name(system.split_schedule if splits and system.split_schedule else system.schedule)
    if not schedule.system.splits_experts:
        if placing != Placing():
            raise InputError(f"placement: {system.name} places no experts; leave it empty")
        return usual_setup(problem, schedule, num_requests, 1)
    if placing == Placing() and schedule.system.whole_layers:
        return _fewest_host_layers(problem, schedule, system, num_requests)
    return _placed(problem, schedule, system, num_requests, **_places(placing, model))


def _placed(problem: Problem, schedule: Schedule, system: ServingSystem, num_requests: int, **places: Any) -> Setup:
    given = {"prefill_experts": system.prefill_experts, "pin_weights": system.pin_weights, **places}
    return Setup(problem, schedule, Policy.usual(schedule, num_requests, num_requests, **given))


def _fewest_host_layers(problem: Problem, schedule: Schedule, system: ServingSystem, num_requests: int) -> Setup:
    """With the experts of so many first layers on the host that the others fit the device."""
    for layers in range(problem.model.num_layers + 1):
        setup = _placed(problem, schedule, system, num_requests, host_layers=(0, layers))
        if not setup.shortages:
            break
    return setup


def _places(placing: Placing, model: Model) -> dict[str, Any]:
    """The fields of a policy that place experts."""
    layers = model.num_layers
    if placing.device_layers is not None:
        return {"experts_on_device": 1.0, "layers_on_host": (0, max(0, layers - placing.device_layers))}
    if placing.host_layers is not None:
        return {"experts_on_device": 1.0, "host_layers": (0, min(placing.host_layers, layers))}
    share = placing.device_share or 0.0
    if placing.device_slots is not None:
        share = min(1.0, placing.device_slots / max(layer.num_experts for layer in model.layers))
    if placing.chosen is Chosen.FRONT_LOADING:
        return {"experts_on_device": 1.0, "host_layers": (round(share * layers), layers)}
    return {"experts_on_device": share, "experts_on_host": 1.0 - share}
