"""What share of a machine's parts a phase uses: bytes and operations of one of its steps over what the part could."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.comparison.check.measurement import Speed
from sim.cost import Setup
from sim.problem import Hardware
from sim.schedule import LaneKind
from sim.simulation import Executed, Prediction, simulate_steps
from traces.trace import HOST_LANES

LINK, HOST_MEMORY, HOST_CORES = "link", "host memory", "host cores"
DEVICE_MEMORY, DEVICE_CORES, NETWORK = "GPU memory", "GPU cores", "network"

PARTS = {
    LaneKind.GPU: (DEVICE_MEMORY, DEVICE_CORES),
    LaneKind.CPU: (HOST_MEMORY, HOST_CORES),
    LaneKind.H2D: (LINK, ""),
    LaneKind.D2H: (LINK, ""),
    LaneKind.PIN: (HOST_MEMORY, ""),
    LaneKind.NET: (NETWORK, ""),
}
"""The parts whose bytes, and whose operations, the work of a lane is."""


@dataclass(frozen=True, slots=True)
class PartUse:
    """The part of the machine that a phase waits for most, and the share of its peak that is used."""

    part: str
    lane: str
    share: float


def most_used(prediction: Prediction, speed: Speed) -> PartUse:
    """The part that the busiest lane of a phase, or of the longer one, works on."""
    setup = prediction.setup
    in_prefill = speed is Speed.PREFILL or (speed is Speed.WHOLE and prediction.prefill_s > prediction.decode_s)
    phase = prediction.prefill if in_prefill or not setup.last_step else prediction.decode
    step = 0 if phase is prediction.prefill else (setup.last_step + 1) // 2
    step_s = prediction.prefill_s if step == 0 else prediction.token_s
    kind = LaneKind(phase.bottleneck.partition(":")[0])
    tasks = [one for one in _of_step(setup, step) if one.task.lane.kind is kind]
    if kind in HOST_LANES:  # one host for all devices; of those that divide the batch one is simulated
        tasks *= setup.batch.copies
    else:
        tasks = [one for one in tasks if one.task.lane.rank == 0]
    part, share = max(_shares(setup.problem.hardware, kind, tasks, step_s), key=lambda one: one[1])
    return PartUse(part, phase.bottleneck, share)


def _of_step(setup: Setup, step: int) -> list[Executed]:
    executed: list[Executed] = []
    simulate_steps(setup, max(0, step - 1), step + 1, on_task=executed.append)
    return [one for one in executed if one.task.step == step]


def _shares(
    machine: Hardware, kind: LaneKind, tasks: Sequence[Executed], seconds: float
) -> Iterator[tuple[str, float]]:
    bytes_of, operations_of = PARTS[kind]
    yield bytes_of, sum(one.cost.bytes for one in tasks) / seconds / _bytes_per_s(machine)[bytes_of]
    if operations_of:
        peak = machine.device.peak_flops_per_s if kind is LaneKind.GPU else machine.host.peak_flops_per_s
        yield operations_of, sum(one.cost.flops for one in tasks) / seconds / peak


def _bytes_per_s(machine: Hardware) -> dict[str, float]:
    network = machine.network
    return {
        LINK: machine.link.peak_bytes_per_s,
        HOST_MEMORY: machine.host_memory.bandwidth_bytes_per_s,
        DEVICE_MEMORY: machine.device_memory.bandwidth_bytes_per_s,
        NETWORK: network.bandwidth_bytes_per_s if network else 1.0,
    }
