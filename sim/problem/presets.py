"""The files that come with the project: models, machines and workloads that a user can name."""

from dataclasses import dataclass
from pathlib import Path

from traces.errors import InputError, nearest, shown

FOLDER = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True, slots=True)
class Presets:
    """The presets of one kind, such as `hardware`: the files of a folder with one suffix."""

    kind: str
    folder: Path
    suffix: str
    otherwise: str
    """What else a user can give, such as `a .toml file`."""

    def names(self) -> tuple[str, ...]:
        """All names, in order; a file that starts with an underscore is for others to extend."""
        return tuple(sorted(path.stem for path in self.folder.glob(f"[!_]*{self.suffix}")))

    def paths(self) -> tuple[Path, ...]:
        """All files, in order of their names."""
        return tuple(self.folder / f"{name}{self.suffix}" for name in self.names())

    def path(self, name: str) -> Path | None:
        """The file of a preset; None where there is none of that name."""
        path = self.folder / f"{name}{self.suffix}"
        return path if "/" not in name and len(name) < 100 and "\0" not in name and path.is_file() else None

    def unknown(self, name: str) -> InputError:
        """The error for a name that is neither a preset nor a file."""
        known = self.names()
        return InputError(
            f"unknown {self.kind} {shown(name)}{nearest(name.lower(), known)}; presets: {', '.join(known)}; "
            f"or give the path of {self.otherwise}"
        )


_MODEL_FILES = "a config.json, a .safetensors or .gguf file, or a folder with one; or a repository of the Hub, org/name"

MODELS = Presets(
    "model",
    FOLDER / "models",
    ".json",
    _MODEL_FILES,
)
MACHINES = Presets("hardware", FOLDER / "hardware", ".toml", "a .toml file")
WORKLOADS = Presets("workload", FOLDER / "workloads", ".toml", "a .toml file, or of a .jsonl file of requests")
