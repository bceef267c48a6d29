"""The tools that check the project are the same everywhere: pins, environments, hooks, and what the package ships."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(re.findall(r"^([\w-]+)==([\w.+]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
TOX = configparser.ConfigParser(interpolation=None)
TOX.read(ROOT / "tox.ini", encoding="utf-8")


def required():
    """Everything that the package asks for, extras included."""
    extras = PROJECT["project"]["optional-dependencies"]
    return [Requirement(text) for texts in (PROJECT["project"]["dependencies"], *extras.values()) for text in texts]


@pytest.mark.parametrize("requirement", required(), ids=lambda one: one.name)
def test_what_is_required_is_pinned_within_what_is_required(requirement):
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert pins[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_style_and_types_are_pinned_once_for_tox_hooks_and_people(tool):
    """The hooks take the tools of the environment; a pin of their own would drift."""
    (exact,) = [str(one.specifier) for one in required() if one.name == tool]
    assert exact == f"=={PINS[tool]}"
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"repo: (.+)", hooks) == ["local"]
    assert set(re.findall(r"language: (.+)", hooks)) == {"system"}
    assert re.search(rf"entry: {tool}\b", hooks)


def test_tox_runs_everything_unless_told_otherwise():
    """`tox` is the README's second command: lint, types and all tests."""
    assert TOX["tox"]["env_list"] == "py"
    lint, types, tests = TOX["testenv"]["commands"].split("\n")[1:]
    assert (lint, types) == ("{[testenv:lint]commands}", "{[testenv:types]commands}")
    assert tests == "pytest -n 2 --dist loadfile --no-loadscope-reorder {posargs}"
    assert TOX["testenv:lint"]["commands"].split("\n")[1:] == ["ruff check .", "ruff format --check ."]
    assert TOX["testenv:types"]["commands"].split() == ["mypy"]
    assert TOX["testenv:quick"]["commands"].strip() == tests.replace("{", '-m "not slow" {')


def test_every_environment_that_is_spoken_of_is_there():
    spoken = re.findall(r"`tox -e (\w+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert {f"testenv:{name}" for name in spoken} == {name for name in TOX.sections() if name.startswith("testenv:")}


@pytest.mark.parametrize("table", ["SLOW", "LONGEST"])
def test_every_test_that_is_called_slow_is_there(table):
    text = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8").partition(f"\n{table} = (")[2]
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r'"([^"\n]+)",', text.partition("\n)\n")[0])
    assert names
    for name in names:
        assert (ROOT / name).exists() or re.search(rf"(def|class) {name.strip(':')}\b", sources), name


@pytest.mark.parametrize("package", PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
def test_a_package_says_that_it_has_types(package):
    """Everything in these folders that git does not ignore goes into the wheel."""
    assert (ROOT / package / "py.typed").is_file()
    for door in (ROOT / package).rglob("__init__.py"):
        assert "attach_stub" not in door.read_text(encoding="utf-8") or door.with_suffix(".pyi").is_file()
