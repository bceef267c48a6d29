"""The order of the house holds: who may import whom, through which doors, and that the picture of it is true.

Each rule is a function of `house`; what it finds in the source must be no more than the exceptions below, and what it
finds in a small house that breaks it must be the breach.
"""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from house import (
    House,
    arrows_up,
    circles,
    doors_missed,
    doors_without_a_sentence,
    exports_named_like_modules,
    full_folders,
    named_like_the_standard_library,
    not_in_the_picture,
    package_arrows_up,
    read_picture,
    shared_names,
)

ROOT = Path(__file__).resolve().parents[2]
HOUSE = House(ROOT, ("traces", "sim", "engine", "validation"))
PICTURE = read_picture((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))

CIRCLES: dict[str, str] = {}
DOORS_MISSED: dict[str, str] = {}
FULL_FOLDERS: dict[str, str] = {}
SHARED_NAMES = {
    **dict.fromkeys(("run",), "each command offers itself in the same way"),
    **dict.fromkeys(("draw", "print_summary"), "each command has a report.py and a picture.py"),
    "plan": "sim plans on a grid; engine plans for the requests at hand with it",
    "read_rows": "of a sweep; of published runs",
    "summarise": "a trace; the hand-over delays of a run",
}
STANDARD_LIBRARY = {
    "traces.trace": "a trace is the package's noun",
    "engine.generation.trace": "what a run leaves is a trace",
}


class TestTheHouse:
    def test_a_package_imports_only_those_below_it(self):
        assert list(package_arrows_up(HOUSE)) == []

    def test_folders_form_the_column_of_the_picture(self):
        assert list(arrows_up(HOUSE, PICTURE)) == []

    def test_the_picture_shows_every_folder_and_what_it_says_of_itself(self):
        assert list(not_in_the_picture(HOUSE, PICTURE)) == []

    def test_no_circles(self):
        assert set(circles(HOUSE)) <= CIRCLES.keys()

    def test_other_folders_come_through_the_door(self):
        assert set(doors_missed(HOUSE)) <= DOORS_MISSED.keys()

    def test_every_folder_says_its_idea_in_one_sentence(self):
        assert list(doors_without_a_sentence(HOUSE)) == []

    def test_no_export_is_named_like_a_module_beside_it(self):
        assert list(exports_named_like_modules(HOUSE)) == []

    def test_no_folder_is_full(self):
        assert full_folders(HOUSE).keys() <= FULL_FOLDERS.keys()

    def test_a_public_name_has_one_meaning(self):
        assert {name: where for name, where in shared_names(HOUSE).items() if name not in SHARED_NAMES} == {}

    def test_no_file_is_named_like_the_standard_library(self):
        assert set(named_like_the_standard_library(HOUSE)) <= STANDARD_LIBRARY.keys()

    def test_no_exception_outlives_its_reason(self):
        excepted = {*CIRCLES, *DOORS_MISSED, *FULL_FOLDERS, *SHARED_NAMES, *STANDARD_LIBRARY}
        rules = (circles, doors_missed, full_folders, shared_names, named_like_the_standard_library)
        assert excepted - {breach for rule in rules for breach in rule(HOUSE)} == set()

    @pytest.mark.parametrize("folder", sorted(folder for folder, names in HOUSE.doors.items() if names))
    def test_a_door_holds_what_its_stub_says(self, folder):
        door = import_module(folder)
        assert set(HOUSE.doors[folder]) <= set(dir(door))
        for name in HOUSE.doors[folder]:
            assert getattr(door, name) is not None

    def test_a_door_that_exports_nothing_is_that_of_a_command(self):
        """The command line imports the command of such a folder by name."""
        closed = [name for name, exports in HOUSE.doors.items() if not exports and "." in name]
        assert [name for name in closed if f"{name}.command" not in HOUSE.files] == []


GOOD = {
    "low/__init__.py": '"""The ground."""\n',
    "low/noun.py": "class Noun: pass\n",
    "high/__init__.py": '"""What stands on it."""\n',
    "high/first/__init__.py": '"""One idea."""\n',
    "high/first/__init__.pyi": "from .inside import Thing as Thing\nfrom .deeper import Deep as Deep\n",
    "high/first/inside.py": "from low.noun import Noun\nclass Thing: pass\n",
    "high/first/deeper/__init__.py": '"""A part of it."""\n',
    "high/first/deeper/__init__.pyi": "from .bottom import Deep as Deep\n",
    "high/first/deeper/bottom.py": "class Deep: pass\n",
    "high/second/__init__.py": '"""Another idea."""\n',
    "high/second/user.py": "from high.first import Thing\n\ndef f():\n    from high.first import Deep\n",
    "high/cli.py": "from high.second import command\n",
    "high/second/command.py": "def offered(): pass\n",
}
GOOD_PICTURE = """
<!-- house -->
low/          The ground.
  noun.py     anything
high/         What stands on it.
  first/      One idea.
    deeper/   A part of it.
  second/     Another idea.
  cli.py
<!-- /house -->
"""


class TestTheRules:
    @pytest.fixture
    def built(self, tmp_path):
        """Build a small house with some files other than in the good one."""

        def build(files=None, picture=GOOD_PICTURE):
            for name, text in {**GOOD, **(files or {})}.items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
            return House(tmp_path, ("low", "high")), read_picture(picture)

        return build

    def test_a_good_house_breaks_none(self, built):
        house, picture = built()
        about_order = (list(arrows_up(house, picture)), list(not_in_the_picture(house, picture)))
        about_names = (list(exports_named_like_modules(house)), named_like_the_standard_library(house))
        assert (*about_order, *about_names) == ([], [], [], [])
        assert (list(package_arrows_up(house)), circles(house), list(doors_missed(house))) == ([], [], [])
        assert (list(doors_without_a_sentence(house)), full_folders(house), shared_names(house)) == ([], {}, {})

    @pytest.mark.parametrize(
        "text",
        [
            "from high.first import Thing\n",
            "import high.first\n",
            "def f():\n    from high.first import Thing\n",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from high.first import Thing\n",
        ],
    )
    def test_a_package_that_imports_one_above_is_named(self, built, text):
        house, _ = built({"low/noun.py": text})
        assert [one.partition(" ")[0] for one in package_arrows_up(house)] == ["low.noun"]

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("high/first/inside.py", "def f():\n    from high.second import user\n"),
            ("high/first/inside.py", "from ..second.user import f\n"),
            ("high/second/user.py", "from high import cli\n"),
            ("high/second/user.py", "from high import Thing\n"),
            ("high/second/user.py", "from high.second import f\n"),
            ("high/first/inside.py", "from high import second\n\ndef f():\n    second.f()\n"),
        ],
    )
    def test_an_import_against_the_column_is_named(self, built, file, text):
        house, picture = built({file: text})
        module = file.removesuffix(".py").replace("/", ".")
        assert {one.partition(" ")[0] for one in arrows_up(house, picture)} == {module}

    def test_the_picture_decides_the_order(self, built):
        first, second = "  first/      One idea.\n    deeper/   A part of it.\n", "  second/     Another idea.\n"
        house, picture = built(picture=GOOD_PICTURE.replace(first + second, second + first))
        assert [one.partition(" ")[0] for one in arrows_up(house, picture)] == ["high.second.user"] * 2

    def test_a_picture_that_is_not_true_is_told(self, built):
        changed = GOOD_PICTURE.replace("One idea.", "An old idea.").replace("second/ ", "third/  ")
        house, picture = built(picture=changed)
        assert list(not_in_the_picture(house, picture)) == [
            "high.first says 'One idea.'",
            "high.second is not shown",
            "high.third is not there",
        ]

    @pytest.mark.parametrize(
        ("files", "circle"),
        [
            (
                {"low/noun.py": "import low.verb\n", "low/verb.py": "def f():\n    from low.noun import Noun\n"},
                "low.noun <- low.verb",
            ),
            (
                {
                    "high/first/inside.py": "from high.first.deeper import Deep\nclass Thing: pass\n",
                    "high/first/ground.py": "class Ground: pass\n",
                    "high/first/deeper/other.py": "from high.first.inside import Thing\n",
                },
                "high.first.deeper <- high.first.inside",
            ),
        ],
    )
    def test_a_circle_is_named(self, built, files, circle):
        """Of files through a door too, and of a file with a subfolder whose files alone make none."""
        house, _ = built(files)
        assert circles(house) == [circle]

    @pytest.mark.parametrize(
        "text",
        [
            "from high.first.inside import Thing\n",
            "import high.first.inside\n",
            "from high.first import inside\n",
            "from high.first.deeper import Deep\n",
            "from high.first.deeper.bottom import Deep\n",
        ],
    )
    def test_a_way_around_the_door_is_named(self, built, text):
        house, _ = built({"high/second/user.py": text})
        assert [one.partition(" ")[0] for one in doors_missed(house)] == ["high.second.user"]

    def test_names_of_exports_files_and_folders(self, built):
        house, _ = built(
            {
                "high/first/__init__.pyi": "from .inside import deeper as deeper\n",
                "high/second/queue.py": "class Noun: pass\n",
                "low/__init__.py": '"""The ground. And more."""\n',
                "high/second/__init__.py": '"""Another idea,\nin two lines."""\n',
            }
        )
        assert list(exports_named_like_modules(house)) == ["high.first.deeper"]
        assert named_like_the_standard_library(house) == ["high.second.queue"]
        assert shared_names(house) == {"Noun": ["low.noun", "high.second.queue"]}
        assert list(doors_without_a_sentence(house)) == ["high.second", "low"]

    def test_a_full_folder_is_counted_without_its_init_and_main(self, built):
        house, _ = built({f"low/{name}.py": "" for name in ("__main__", *"abcdefghi")})
        assert full_folders(house) == {}
        house, _ = built({"low/j.py": ""})
        assert full_folders(house) == {"low": 11}


@pytest.mark.parametrize(
    "module",
    [
        "sim",
        "sim.cli",
        "sim.comparison.comparison",
        "sim.simulation.views.timeline",
        "sim.planning.search.planner",
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
