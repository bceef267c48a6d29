"""Stage 7: a model of full depth whose weights lie page-locked in place, under a cap that a tenth of it would fill."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from traces.files import write_trace
from validation.campaign import Case
from validation.gpu.piece import Piece
from validation.gpu.record import NotReadyError
from validation.gpu.scale import LOCKED
from validation.gpu.stages.running import predicted, run_on_bench
from validation.gpu.workbench import Workbench, available_host_bytes, weight_bytes

HOST_SHARE = 0.85
"""Of the host memory that is free, what the model may take: the rest is for its KV cache and the system."""

SCHEDULE = "cgopipe"
PREDICTION, RUN = "prediction", "run"


def whole_pieces(bench: Workbench) -> Iterator[Piece]:
    """The prediction is written first."""
    seconds = bench.scale.seconds["whole"]
    yield Piece(PREDICTION, 1.0, partial(_predict, bench))
    yield Piece(RUN, seconds, partial(run_whole, bench))


def _case(bench: Workbench) -> Case:
    scale, spec = bench.scale, bench.scale.whole
    sizes = (scale.requests, scale.micro_batch_size, scale.prompt_tokens, spec.steps)
    return Case(spec.model, SCHEDULE, *sizes, LOCKED, "whole")


def layers_that_fit(bench: Workbench) -> int:
    """As many as the host holds, up to what the scale asks for."""
    spec, room = bench.scale.whole, HOST_SHARE * available_host_bytes()
    one, two = (weight_bytes(bench.described(spec.model, count)) for count in (1, 2))
    return max(1, min(spec.layers, 1 + int((room - one) / (two - one))))


def _predict(bench: Workbench) -> dict[str, Any]:
    bench.drop_models()
    case, spec, layers = _case(bench), bench.scale.whole, layers_that_fit(bench)
    setup = bench.setup_of(spec.model, case.chosen_schedule, case.policy, case.prompt_tokens, case.gen_len, layers)
    found = predicted(setup)
    planned_bytes = found["plan_bytes"]["device"]
    del found["shortages"]  # of the machine as it was calibrated, with another cap
    fits = planned_bytes <= spec.device_bytes
    asked = {"layers": layers, "layers_asked": spec.layers, "cap_bytes": spec.device_bytes, "fits": fits}
    return {**asked, "weight_bytes": weight_bytes(setup.problem.model), "requests": case.batch_size, **found}


def run_whole(bench: Workbench) -> dict[str, Any]:
    """The run. Raises NotReadyError if it is not predicted yet."""
    said = bench.record.results("whole").get(PREDICTION)
    if said is None:
        raise NotReadyError("it is not predicted yet, so it is not run")
    bench.drop_models()
    spec, case = bench.scale.whole, _case(bench)
    model = bench.model(spec.model, said["layers"])
    trace, found = run_on_bench(bench, case, model, spec.device_bytes)
    kept = bench.record.keep(f"whole-{spec.model}.json.gz", partial(write_trace, trace))
    bench.drop_models()
    return {**found, "trace_kept": kept}
