"""What README and docs tell a reader to write works as it stands there."""

import json
import re
from pathlib import Path

import pytest

from sim.cli import main
from sim.problem import Hardware, Policy, read_policy_file
from sim.schedule import BUILT_IN, Op, PipelineShape, Place, Schedule, by_name
from sim.simulation import task_ends

ROOT = Path(__file__).resolve().parents[2]


def blocks(document: str, language: str) -> list[str]:
    """Code blocks of one language in a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_schedule_of_the_docs_runs():
    (source,) = blocks("docs/schedules.md", "python")
    namespace: dict[str, object] = {}
    exec(source, namespace)
    schedule = namespace["Eager"]()
    assert isinstance(schedule, Schedule)
    tasks = list(schedule.tasks(PipelineShape(3, 2, 1, Place.GPU, (True,) * 3), 4))
    assert len(task_ends(tasks, lambda _task: 10)) == len(tasks)
    assert sum(task.op is Op.POST_ATTN for task in tasks) == 3 * 2 * 4


EXAMPLES = (*blocks("docs/library.md", "python"), *blocks("docs/streams.md", "python"))


@pytest.mark.parametrize("source", EXAMPLES, ids=["calls", "nouns", "streams"])
def test_the_examples_of_the_library_run(source, capsys):
    """Each shows numbers of the simulator or asserts something about them."""
    exec(source, {})
    assert re.search(r"\d+\.\d", capsys.readouterr().out) or "\nassert " in source


def test_the_table_of_schedules_names_all_of_them():
    text = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) == [
        schedule.name for schedule in (BUILT_IN[0], BUILT_IN[1], *BUILT_IN[2:])
    ]


def test_the_policy_of_the_docs_loads(tmp_path):
    (text,) = blocks("docs/settings.md", "json")
    file = tmp_path / "policy.json"
    file.write_text(text)
    schedule, table = read_policy_file(file)
    policy = Policy.from_dict(table, by_name(schedule))
    assert str(policy) == "36×14"
    assert policy.experts_on_device == json.loads(text)["experts_on_device"]


def test_the_machine_of_the_docs_loads(tmp_path):
    (text,) = blocks("docs/settings.md", "toml")
    file = tmp_path / "my.toml"
    file.write_text(text)
    hardware = Hardware.load(str(file))
    assert hardware.link.h2d_bytes_per_s == 24.1e9
    assert hardware.device_memory == Hardware.load("rtx4090").device_memory


@pytest.mark.parametrize(
    "command", re.findall(r"`cgopipe (list[^`]*|roofline[^`]*)`", (ROOT / "docs" / "settings.md").read_text())
)
def test_commands_of_the_readme_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0
    capsys.readouterr()


def test_the_readme_holds_two_commands_that_ci_can_find():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = text.partition("<!-- commands -->")[2].partition("<!-- /commands -->")[0]
    assert [line.partition(" ")[0] for line in marked.splitlines() if line.startswith("python3 ")] == ["python3"] * 2


def test_every_file_that_a_document_links_to_exists():
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).is_file(), (document.name, target)
