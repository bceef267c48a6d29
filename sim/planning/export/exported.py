"""A plan as another program can run it: its best setting, how that program is told, and what it does otherwise."""

from dataclasses import asdict, dataclass
from typing import Any

from sim.planning.export.differences import Difference, differing, matters
from sim.planning.export.programs import Launch, ServedSetup, known_flags
from sim.planning.export.targets import TARGETS
from sim.planning.search import Candidate, Choice, NothingFitsError, ranked
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class Exported:
    """What another program makes of a plan."""

    target: str
    version: str
    """The release whose options are used."""
    plan: Candidate
    best: Candidate
    """The best setting that the program can run, simulated as the schedule that stands for it."""
    launch: Launch
    differences: tuple[Difference, ...]
    """What the plan does that the program does not."""

    @property
    def of_plan(self) -> float:
        """Its throughput over the plan's."""
        return self.best.throughput_tokens_per_s / self.plan.throughput_tokens_per_s

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "program": self.target,
            "version": self.version,
            "serve": str(self.launch.serve),
            "measure": self.launch.measure and str(self.launch.measure),
            "schedule": self.best.schedule,
            "policy": self.best.policy.to_dict(),
            "throughput_tokens_per_s": self.best.throughput_tokens_per_s,
            "decode_tokens_per_s": self.best.decode_tokens_per_s,
            "time_to_first_token_s": self.best.time_to_first_token_s,
            "memory_peak_bytes": self.best.setup.memory.peak_bytes(),
            "differences": [asdict(one) for one in self.differences],
            "notes": list(self.launch.notes),
        }


def export_plan(choice: Choice, target: str, checkpoint: str) -> Exported:
    """What a program makes of a plan for a model whose weights are at `checkpoint`.

    Raises InputError where it cannot run the model on this machine at all.
    """
    program = TARGETS[target]
    devices = choice.problem.hardware.num_devices
    if program.one_device and devices > 1:
        others = ", ".join(name for name, one in TARGETS.items() if not one.one_device)
        machine = choice.problem.hardware.name
        raise InputError(f"--export {target}: {program.one_device}; {machine} has {devices}: give one of {others}")
    reasons, found = list[str](), {}
    for mode in program.modes:
        try:
            candidate = mode.find(choice, program.most_requests)
        except NothingFitsError as error:
            reasons.append(str(error))
            continue
        found[candidate.policy] = (candidate, mode)
    if not found:
        raise InputError(f"--export {target}: nothing that it can do fits: {'; '.join(reasons)}")
    best, mode = found[ranked((one for one, _ in found.values()), choice.objective)[0].policy]
    setting = ServedSetup(best.setup, checkpoint)
    there = {**matters(best.setup), **mode.in_words(setting)}
    told = mode.launch(setting)
    version = known_flags()[program.known_as].version
    return Exported(target, version, choice.best, best, told, differing(matters(choice.best.setup), there))
