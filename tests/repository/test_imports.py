"""Imports run one way: traces ← sim ← engine ← validation; and the simulator starts without the heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("traces", "sim", "engine", "validation")


def imported_packages(path: Path) -> set[str]:
    """Top-level names of every import in a file, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_those_below_it(package):
    above = set(ORDER[ORDER.index(package) + 1 :]) | {"tests", "benchmarks"}
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        assert not imported_packages(file) & above, file


def test_the_check_sees_an_import_inside_a_function(tmp_path):
    file = tmp_path / "one.py"
    file.write_text("def f():\n    from engine import run\n    import validation.metrics\n")
    assert imported_packages(file) == {"engine", "validation"}


@pytest.mark.parametrize(
    "module",
    [
        "sim",
        "sim.cli",
        "sim.comparison.comparison",
        "sim.simulation.timeline",
        "sim.planning.planner",
        "sim.planning.command",
    ],
)
def test_importing_the_simulator_loads_no_heavy_library(module):
    script = f"import {module}, sys; print(*[m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""


def test_the_simulator_needs_no_torch(tmp_path):
    """`python -m sim compare` works where torch and transformers cannot be imported at all."""
    for name in ("torch", "transformers", "greenlet"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(1, {str(ROOT)!r}); "
        "from sim.cli import main; "
        "sys.exit(main(['compare', '--schedules', 'zero', '--micro-batch-size', '4', '--num-micro-batches', '1', "
        "'--gen-len', '4', '--jobs', '1']))"
    )
    shown = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "zero" in shown.stdout
