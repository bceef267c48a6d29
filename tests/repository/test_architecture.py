"""ARCHITECTURE.md leads where it says: its paths exist, and who follows its steps for a new schedule has one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def steps(title: str) -> list[str]:
    """The numbered steps below a bold title."""
    section = TEXT.partition(f"**{title}.**")[2].partition("\n\n")[0]
    return re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([a-z_]+(?:/[\w.]+)+/?)`", TEXT))))
def test_every_path_that_is_named_exists(path):
    assert (ROOT / path.replace("NAME", "cgopipe")).exists()


@pytest.mark.parametrize("name", ["BUILT_IN", "LANE_OF", "Op", "Objective", "Device"])
def test_what_a_step_names_is_in_the_file_that_it_names(name):
    (file,) = set(re.findall(rf"`{name}` of `([^`]+)`", TEXT))
    assert re.search(rf"^(class )?{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_who_follows_the_steps_for_a_schedule_has_one(tmp_path):
    """In a copy of the source: one file, a name in the door and in the registry, and every command knows it."""
    write, register, done = steps("Add a schedule")
    for package in ("traces", "sim"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (file,) = re.findall(r"`([^`]+/NAME\.py)`", write)
    (document,) = re.findall(r"\((docs/\w+\.md)\)", write)
    (source,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / file.replace("NAME", "eager")).write_text(source)
    door, registry = (tmp_path / path for path in re.findall(r"`([\w/]+\.pyi?)`", register))
    door.write_text(door.read_text() + "from .eager import Eager as Eager\n")
    text = registry.read_text()
    assert text.count("    Accelerate,\n") == 2, "where it is imported, and in BUILT_IN"
    registry.write_text(text.replace("    Accelerate,\n", "    Accelerate,\n    Eager,\n"))
    assert "compared" in done
    asked = "--schedules eager,flexgen --micro-batch-size 4 --num-micro-batches 3 --gen-len 3 --jobs 1 --json -"
    shown = subprocess.run(
        [sys.executable, "-m", "sim", "compare", *asked.split()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    eager, flexgen = json.loads(shown.stdout)["results"]
    assert (eager["schedule"], eager["feasible"]) == ("eager", True)
    assert eager["decode_s"] != flexgen["decode_s"]
