"""The recipe of docs/many_hosts.md on a local Dask cluster: each line once, in order, as one run would have it."""

import json
import re
from pathlib import Path

import pytest

from engine.cli import main
from engine.running.demo import make_model

distributed = pytest.importorskip("distributed")
(RECIPE,) = re.findall(
    r"^```python\n(.*?)^```$",
    (Path(__file__).parents[2] / "docs" / "many_hosts.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


def cut(path, lines):
    """What a process that was killed leaves: some lines, the last of them not whole."""
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:lines]) + content[lines][:9])


@pytest.mark.exhaustive  # four processes that load torch
def test_shards_on_a_cluster_give_the_file_of_one_run_whoever_was_killed(tmp_path, capsys):
    make_model(tmp_path / "model", hidden_size=32, num_layers=1)
    requests = tmp_path / "requests.jsonl"
    lines = [{"prompt": f"Request {number}", "temperature": 0.9, "max_tokens": 3 + number % 3} for number in range(7)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"prompt": 5}]), encoding="utf-8")
    sizes = ["--micro-batch-size", "2", "--num-micro-batches", "1", "--device", "emulated"]
    options = ["--model", str(tmp_path / "model"), *sizes]
    one_run = ["--input", str(requests), "--output", str(tmp_path / "one.jsonl"), "--seed", "4"]
    assert main(["run", *one_run, *options]) == 0

    recipe: dict[str, object] = {}
    exec(RECIPE, recipe)
    output = tmp_path / "results.jsonl"
    there = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**there) as cluster, distributed.Client(cluster) as client:
        recipe["generate_on"](client, requests, output, options, seed=4, size=4)
        first = output.read_bytes()
        cut(next((tmp_path / "results.shards").glob("*0-4.results")), 2)
        recipe["generate_on"](client, requests, output, options, seed=4, size=4)
    assert output.read_bytes() == first
    assert "2 of 2 shards" in capsys.readouterr().out

    def answers(path):
        return [
            {key: value for key, value in json.loads(line).items() if key not in ("made_by", "error")}
            for line in path.read_text(encoding="utf-8").splitlines()
        ]

    assert answers(output) == answers(tmp_path / "one.jsonl")
    assert len(answers(output)) == 8
    assert "line 4: prompt is" in output.read_text(encoding="utf-8").splitlines()[-1]
