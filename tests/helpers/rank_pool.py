"""Processes that are the ranks of many runs, one after the other: started once, and given a case at a time."""

import contextlib
import multiprocessing
import shutil
import tempfile
import traceback
from pathlib import Path

from engine_models import PROMPTS, make, make_prompts
from wide_models import wide

from engine import run
from engine.device import EmulatedDevice, Rendezvous, join_group
from sim.problem import Policy
from sim.schedule import Place, by_name

PATIENCE_S = 100.0


class RankPool:
    """So many ranks; each case is run by all of them."""

    def __init__(self, count):
        spawn, self._folder = multiprocessing.get_context("spawn"), Path(tempfile.mkdtemp(prefix="rank-pool-"))
        self._ours, self._processes = [], []
        for index in range(count):
            ours, theirs = spawn.Pipe()
            place = Rendezvous(index, count, self._folder)
            process = spawn.Process(target=_serve, args=(place, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ours.append(ours)
            self._processes.append(process)

    def __call__(self, work, *arguments):
        """What `work(rank, *arguments)` gives in each rank. What it raises comes out as text in an AssertionError."""
        for ours in self._ours:
            ours.send((work, arguments))
        answers = [self._answer(index) for index in range(len(self._ours))]
        for index, (error, _) in enumerate(answers):
            assert error is None, f"rank {index}: {error}"
        return [value for _, value in answers]

    def _answer(self, index):
        if not self._ours[index].poll(PATIENCE_S):
            self.close()
            raise AssertionError(f"rank {index} hangs")
        return self._ours[index].recv()

    def close(self):
        for process in self._processes:
            process.kill()
            process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def _serve(place, connection):
    with join_group(place) as rank, contextlib.suppress(EOFError):
        while True:
            work, arguments = connection.recv()
            try:
                answer = None, work(rank, *arguments)
            except Exception:  # whatever it is, the test shows it
                answer = traceback.format_exc(), None
            connection.send(answer)


def generated_by(rank, family, schedule, policy, options):
    """Tokens, peaks and trace of one run of a family's usual model; `made` are changes of its configuration."""
    options = dict(options)
    model = make(family, **options.pop("made", {}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with EmulatedDevice(None, None, options.pop("memory_bytes", 2**30)) as device:
        found = run(model, PROMPTS, schedule, policy, device=device, rank=rank, max_new_tokens=4, **options)
    after = model.state_dict()
    whole = all(name in after and after[name].equal(tensor) for name, tensor in before.items())
    return {"tokens": found.sequences, "peaks": found.stats.peak_bytes, "trace": found.trace, "whole": whole}


def peaks_of(rank, family, schedule, places, lengths, size, new):
    """What each tier of a rank held at most, of a wide model; what of it is page-locked without need."""
    schedule = by_name(schedule)
    policy = Policy.usual(schedule, len(lengths), size, **places)
    with EmulatedDevice(None, None, 2**30) as device:
        found = run(
            wide(family), make_prompts(*lengths), schedule, policy, max_new_tokens=new, device=device, rank=rank
        )
    peaks = dict(found.stats.peak_bytes)
    if policy.attention is Place.CPU:  # a cache that the model reads itself is page-locked all the same
        peaks["pinned"] -= found.trace.metadata["host_memory"].get("kv cache", {"locked": 0})["locked"]
    return peaks
