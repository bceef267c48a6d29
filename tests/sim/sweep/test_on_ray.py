"""A sweep on a real Ray cluster of two nodes on this machine.

Who asks it is a process of its own, as Ray ends its process where it must.
"""

import json
import subprocess
import sys

import pytest

from sim.cli import main
from sim.sweep.on_ray import map_on_ray
from traces.errors import InputError

pytest.importorskip("ray")
SMALL = ("--schedules", "cgopipe,zero", "--gen-len", "4", "--micro-batch-size", "8", "--num-micro-batches", "2")
SWEEP = ("sweep", "--axis", "hardware.link.h2d=8..16x2", "--axis", "prompt_len=64,128", *SMALL)
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
ASKED = """
import json, os, sys
from sim.cli import main
from sim.sweep.on_ray import map_on_ray
from traces.errors import InputError

def two_is_wrong(item):
    if item == 2:
        raise InputError("two is not allowed")
    return item

address, *sweep = sys.argv[1:]
code = main([*sweep, "--backend", "ray", "--cluster", address])
found = list(map_on_ray(lambda item: (item, os.getpid()), range(20), 3, address))
results, said = map_on_ray(two_is_wrong, range(50), 3, address), None
first = [next(results), next(results)]
try:
    next(results)
except InputError as error:
    said = str(error)
elsewhere = os.getpid() not in {process for _, process in found}
print(json.dumps([code, [item for item, _ in found], elsewhere, first, said]))
"""


@pytest.mark.exhaustive  # some seconds to start a cluster
def test_rows_are_the_same_bytes_results_in_order_and_errors_as_they_are(tmp_path):
    from ray.cluster_utils import Cluster

    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert main([*SWEEP, "--jobs", "1", "--out", str(here)]) == 0
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        command = [sys.executable, "-c", ASKED, cluster.address, *SWEEP, "--out", str(there)]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        cluster.shutdown()
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout.splitlines()[-1])
    assert said == [0, list(range(20)), True, [0, 1], "two is not allowed"]
    assert there.read_bytes() == here.read_bytes()


def test_an_address_where_nobody_answers_is_one_line():
    with pytest.raises(InputError, match=r"^--cluster 127.0.0.1:1: no Ray head answers there: .*refused$"):
        next(map_on_ray(str, [1], 1, "127.0.0.1:1"))
