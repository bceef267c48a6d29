"""The folder of a proof: what each piece of work found, written at once, and the traces behind it in one archive."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from traces.cli import SCHEMA
from traces.errors import InputError
from traces.files import UNFINISHED, appearing, read_object

LARGEST_FILE_BYTES = 16 * 1024**2
"""What fits no file of this size is not kept."""

KIND = "a proof on an accelerator"


class NotReadyError(InputError):
    """What a piece of work builds on is not there yet: it is left out, not failed."""


Outcome = dict[str, Any]
"""What is known of a piece of work: `result`, or `error` with its `traceback`, or why it was `left_out`."""


@dataclass(frozen=True, slots=True)
class ProofRecord:
    """The state of a proof in its folder. `stages` holds outcomes by stage and piece of work."""

    folder: Path
    settings: Mapping[str, Any]
    stages: dict[str, dict[str, Outcome]] = field(default_factory=dict)

    @classmethod
    def begin(cls, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> Self:
        """A new record, or with `resume` the one that is there. Raises InputError if it is of other settings."""
        file = folder / "proof.json"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            return cls(folder, dict(settings))
        if not resume:
            raise InputError(
                f"--out {folder}: holds a proof already; give --resume to go on with it, or another folder"
            )
        found = cls.read(folder)
        for unfinished in folder.glob(UNFINISHED):  # of a call that was killed
            unfinished.unlink()
        for name, value in settings.items():
            if (begun := found.settings.get(name)) != value:
                raise InputError(f"--out {folder}: was begun with {name} {begun!r}, not {value!r}; give a new folder")
        return found

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in a folder. Raises InputError if there is none."""
        content = read_object(folder / "proof.json")
        if content.get("kind") != KIND:
            raise InputError(f"{folder / 'proof.json'}: is not {KIND}")
        return cls(folder, content["settings"], content["stages"])

    def outcome(self, stage: str, piece: str) -> Outcome:
        """What is known of a piece of work; empty if nothing is."""
        return self.stages.get(stage, {}).get(piece, {})

    def results(self, stage: str) -> dict[str, Any]:
        """What the pieces of a stage found that came to an end."""
        return {name: one["result"] for name, one in self.stages.get(stage, {}).items() if "result" in one}

    def note(self, stage: str, piece: str, outcome: Outcome) -> None:
        """Writes what is known of a piece of work to the disk."""
        self.stages.setdefault(stage, {})[piece] = outcome
        content = {"schema": SCHEMA, "kind": KIND, "settings": dict(self.settings), "stages": self.stages}
        with appearing(self.folder / "proof.json") as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def machine_file(self, model: str) -> Path:
        return self.folder / f"machine-{model}.toml"

    @property
    def archive(self) -> Path:
        return self.folder / "traces.zip"

    def keep(self, name: str, write: Callable[[Path], object]) -> bool:
        """Adds a file that `write` writes to the archive, in place of one of this name; False if it is too large."""
        with tempfile.TemporaryDirectory() as apart, appearing(self.archive) as archive:
            write(Path(apart, name))
            self._copy_without(name, archive)
            with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
                opened.write(Path(apart, name), name)
            fits = archive.stat().st_size <= LARGEST_FILE_BYTES
            if not fits:
                self._copy_without(name, archive)
        return fits

    def kept(self) -> list[str]:
        """The names of what the archive holds."""
        if not self.archive.exists():
            return []
        with zipfile.ZipFile(self.archive) as opened:
            return opened.namelist()

    @contextmanager
    def unpacked(self, beginning: str) -> Iterator[list[Path]]:
        """The files of the archive whose names begin so, in order of name, for as long as this is entered."""
        names = sorted(name for name in self.kept() if name.startswith(beginning))
        with tempfile.TemporaryDirectory() as folder:
            if names:
                with zipfile.ZipFile(self.archive) as opened:
                    opened.extractall(folder, names)
            yield [Path(folder, name) for name in names]

    def _copy_without(self, name: str, target: Path) -> None:
        if name not in self.kept():
            if self.archive.exists():
                shutil.copyfile(self.archive, target)
            else:
                zipfile.ZipFile(target, "w").close()
            return
        with zipfile.ZipFile(self.archive) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
            for one in old.namelist():
                if one != name:
                    new.writestr(one, old.read(one))
