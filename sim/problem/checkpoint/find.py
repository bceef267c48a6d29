"""What a user means by a model: a path, the name of a preset, or a repository on the Hub."""

from pathlib import Path

from sim.problem.checkpoint.checkpoint import Checkpoint
from sim.problem.checkpoint.hub import HubId, read_hub
from sim.problem.checkpoint.local import holds_model, read_path
from sim.problem.presets import MODELS
from traces.files import read_object


def find_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """A checkpoint by what the user gives. Raises InputError where it is none.

    A path wins where there is a model: a file, or a folder with one in it, whatever presets are called. Then come names
    of presets, the repositories of the Hub that presets describe, and other repositories.
    """
    text = str(name_or_path)
    path = Path(name_or_path)
    if text and holds_model(path):
        return read_path(path)
    if isinstance(name_or_path, str):
        preset = _preset(text)
        if preset is not None:
            return preset
        found = HubId.parse(text)
        if found is not None:
            return read_hub(found)
    if text and _is_folder(path):
        return read_path(path)
    raise MODELS.unknown(text)


def _preset(text: str) -> Checkpoint | None:
    """A preset by its name, or by the repository that it describes."""
    path = MODELS.path(text.lower())
    if path is None and "/" in text:
        path = next((path for path in MODELS.paths() if text in read_object(path).get("_hub_ids", ())), None)
    return None if path is None else Checkpoint(read_object(path), path.stem, f"model preset {path.stem}")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
