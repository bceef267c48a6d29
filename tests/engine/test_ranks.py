"""Ranks: one group, sums in order, shares of cores; and one that is lost or fails ends all, by name."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_work

from engine.device import Rank, RankError, run_in_ranks, started_by_torchrun
from engine.device.ranks.cores import share_of
from engine.device.ranks.errors import Failure, died
from traces.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 20.0
"""Within seconds, on a machine that has much else to do."""

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def no_children():
    return not [one for one in multiprocessing.active_children() if one.name.startswith("rank ")]


class TestTogether:
    def test_sums_meet_in_order_of_issue_and_cores_are_shared_out(self):
        heard = []
        found = run_in_ranks(2, rank_work.sums, 5, hear=heard.append)
        assert [one[0] for one in found] == [[3.0, 6.0, 9.0, 12.0, 15.0]] * 2
        assert [one[2] for one in found] == ["of 0"] * 2
        assert heard == [0, 1, 2, 3, 4]
        mine, others = (set(one[1]) for one in found)
        assert not mine & others or len(mine | others) == 1
        assert no_children()


class TestOneGoesWrong:
    @pytest.mark.parametrize(
        ("which", "how", "told", "kind"),
        [
            (1, "killed", "rank 1 was killed (SIGKILL)", RankError),
            (0, "raises", "rank 0 failed: ZeroDivisionError: by nothing", RuntimeError),
            pytest.param(0, "killed", "rank 0 was killed (SIGKILL)", RankError, marks=pytest.mark.exhaustive),
            pytest.param(1, "raises", "rank 1 failed: ZeroDivisionError", RuntimeError, marks=pytest.mark.exhaustive),
            pytest.param(1, "refuses", "rank 1: device memory is full", InputError, marks=pytest.mark.exhaustive),
            pytest.param(1, "leaves", "rank 1 ended with exit code 7", RankError, marks=pytest.mark.exhaustive),
        ],
    )
    def test_all_stop_with_its_name(self, which, how, told, kind):
        heard = []
        with pytest.raises(kind) as raised:
            run_in_ranks(2, rank_work.goes_wrong, which, how, hear=heard.append)
        assert str(raised.value).startswith(told)
        assert heard[:2] == [0, 1]
        assert no_children()

    def test_what_a_callback_raises_comes_out_and_ends_all(self):
        def full(said):
            raise OSError("no room left")

        with pytest.raises(OSError, match="no room left"):
            run_in_ranks(2, rank_work.sums, 1, hear=full)
        assert no_children()

    def test_what_all_refuse_alike_is_nobodys_fault(self):
        with pytest.raises(InputError, match=r"^model: three ranks for 32 heads"):
            run_in_ranks(2, rank_work.refused)

    def test_what_follows_from_a_loss_is_not_told(self):
        assert str(died(1, -int(signal.SIGKILL))).startswith("rank 1 was killed (SIGKILL)")
        lost = Failure("PeerLostError: another rank left", "", False, True)
        assert str(lost.error(0, all_say_so=False)).startswith("rank 0 failed")

    @pytest.mark.exhaustive
    def test_ranks_end_with_who_started_them(self, script):
        running = script(
            "    run_in_ranks(2, rank_work.goes_wrong, 1, 'raises', 600.0, hear=lambda i: print(i, flush=True))\n"
        )
        assert running.stdout is not None
        assert running.stdout.readline() == "0\n"
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        ranks = [one for one in children if "spawn_main" in Path(f"/proc/{one}/cmdline").read_text()]
        assert len(ranks) == 2
        running.kill()
        running.wait()
        until = time.monotonic() + SOON_S
        while any(Path(f"/proc/{one}").exists() for one in ranks):
            assert time.monotonic() < until
            time.sleep(0.05)

    @pytest.mark.exhaustive
    def test_a_script_without_a_guard_is_told(self, script):
        running = script("    pass\nrun_in_ranks(2, rank_work.sums, 1)\n")
        _, told = running.communicate(timeout=SOON_S)
        assert running.returncode
        assert 'if __name__ == "__main__":' in told


@pytest.fixture
def script(tmp_path):
    """Starts a script that may use ranks; `body` is what is under its guard, and what follows."""

    def started(body):
        path = tmp_path / "script.py"
        head = "import rank_work\nfrom engine.device import run_in_ranks\n"
        path.write_text(f"{head}if __name__ == '__main__':\n{body}")
        folders = os.pathsep.join([str(ROOT), str(ROOT / "tests/helpers")])
        environment = {**os.environ, "PYTHONPATH": folders}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, str(path)], env=environment, **pipes)

    return started


class TestPlaces:
    def test_torchrun_says_which_one_it_is(self):
        place = started_by_torchrun(TORCHRUN)
        assert place is not None
        assert (place.index, place.count, place.folder) == (1, 2, None)

    def test_one_process_of_torchrun_is_no_rank(self):
        assert started_by_torchrun({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"}) is None
        assert started_by_torchrun({}) is None

    def test_ranks_share_one_host(self):
        with pytest.raises(InputError, match="2 ranks with 1 on this host"):
            started_by_torchrun({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"})

    def test_a_rank_is_one_of_so_many(self):
        with pytest.raises(InputError, match="rank 2 of 2: give one from 0 to 1"):
            Rank(2, 2)

    @pytest.mark.parametrize(
        ("wanted", "shares"),
        [
            ([[0, 1, 2, 3]] * 2, [[0, 1], [2, 3]]),
            ([[0, 1, 2, 3, 4]] * 2, [[0, 1], [2, 3, 4]]),
            ([[0, 1], [0, 1], [2, 3, 4]], [[0], [1], [2, 3, 4]]),
            ([[0, 1]] * 4, [[0], [1], [0], [1]]),
        ],
    )
    def test_cores_go_to_those_who_are_near(self, wanted, shares):
        assert [share_of(index, wanted) for index in range(len(wanted))] == shares
