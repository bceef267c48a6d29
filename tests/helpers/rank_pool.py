"""Processes that are the ranks of many runs, one after the other: started once, and given a case at a time."""

import contextlib
import multiprocessing
import shutil
import tempfile
import traceback
from pathlib import Path

from engine_models import PROMPTS, make

from engine import run
from engine.device import EmulatedDevice, Rendezvous, join_group

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
