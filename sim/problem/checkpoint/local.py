"""Checkpoints on this machine: a folder, a `config.json`, safetensors or an index of them, GGUF files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.problem.checkpoint.checkpoint import Checkpoint
from sim.problem.checkpoint.gguf_file import read_gguf
from sim.problem.checkpoint.safetensors_files import INDEX_SUFFIX, SUFFIX, read_files, weight_files
from sim.problem.widths import Tensor
from traces.errors import InputError, shown
from traces.files import read_object

CONFIG = "config.json"
QUANTISATION = "hf_quant_config.json"
"""Where ModelOpt writes what it did, beside the configuration."""
GGUF_SUFFIX = ".gguf"
_LATER_SPLIT = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")


def holds_model(path: Path) -> bool:
    """Whether a path is a file, or a folder with a model in it."""
    try:
        if not path.is_dir():
            return path.exists()
        return (path / CONFIG).exists() or any(path.glob(f"*{GGUF_SUFFIX}"))
    except (OSError, ValueError):  # no name that a file can have
        return False


def read_path(path: Path) -> Checkpoint:
    """The checkpoint at a path that exists. Raises InputError for a file that is none."""
    if path.is_dir():
        return _folder(path)
    if path.name == CONFIG:
        return _folder(path.parent, str(path))
    if path.name.endswith(INDEX_SUFFIX):
        return _beside_config(path, _files_of_index(path))
    if path.suffix == SUFFIX:
        return _beside_config(path, [path])
    if path.suffix == GGUF_SUFFIX:
        return read_gguf(_splits(path), path.stem)
    return Checkpoint(read_object(path), path.stem, str(path))


def _folder(folder: Path, source: str | None = None) -> Checkpoint:
    config_path = folder / CONFIG
    if config_path.exists():
        config = with_quantisation(read_object(config_path), _quantisation(folder))
        return Checkpoint(config, folder.resolve().name, source or str(config_path), _tensors(folder))
    ggufs = sorted(folder.glob(f"*{GGUF_SUFFIX}"))
    first = [path for path in ggufs if not _LATER_SPLIT.search(path.name)]
    if len(first) == 1:
        return read_gguf(_splits(first[0]), first[0].stem)
    if first:
        names = ", ".join(path.name for path in first[:8])
        raise InputError(f"{folder}: holds {len(first)} models; give one of its files: {names}")
    raise InputError(f"{folder}: holds no model: there is neither a {CONFIG} nor a GGUF file in it")


def with_quantisation(config: Mapping[str, Any], beside: Mapping[str, Any] | None) -> dict[str, Any]:
    """A configuration with what a file beside it says of quantisation, where it says nothing itself."""
    if beside is None or config.get("quantization_config") is not None:
        return dict(config)
    return {**config, "quantization_config": {"quant_method": "modelopt", **beside}}


def _quantisation(folder: Path) -> Mapping[str, Any] | None:
    path = folder / QUANTISATION
    return read_object(path) if path.exists() else None


def _beside_config(path: Path, files: Sequence[Path]) -> Checkpoint:
    folder = path.parent
    if not (folder / CONFIG).exists():
        raise InputError(f"{path}: tensors alone are no model: their {CONFIG} must lie beside them")
    config = with_quantisation(read_object(folder / CONFIG), _quantisation(folder))
    return Checkpoint(config, folder.resolve().name, str(path), read_files(files))


def _files_of_index(path: Path) -> list[Path]:
    names = read_object(path).get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{path}: is no index of safetensors: weight_map, the file of each tensor, is missing")
    files = [path.parent / name for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        some = f"{len(missing)} of {len(files)} missing"
        raise InputError(f"{path}: names {shown(missing[0])}, which is not there ({some})")
    return files


def _tensors(folder: Path) -> tuple[Tensor, ...]:
    """What the headers in a folder say, where all of its files are there; else the configuration must do."""
    names = {path.name for path in folder.iterdir()}
    index = next((folder / name for name in sorted(names) if name == f"model{INDEX_SUFFIX}"), None)
    files = weight_files(sorted(names))
    if index is not None:
        found = read_object(index).get("weight_map")
        named = set(found.values()) if isinstance(found, Mapping) else set()
        if not named or not named <= names:
            return ()
        files = sorted(named)
    paths = [folder / name for name in files]
    return () if any(_is_pointer(path) for path in paths) else read_files(paths)


def _is_pointer(path: Path) -> bool:
    """Whether Git has left a pointer where a large file belongs."""
    return path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs")


def _splits(path: Path) -> list[Path]:
    """All files of a model that is split. Raises InputError for a split that is not the first, and for missing ones."""
    found = re.search(r"-(\d{5})-of-(\d{5})\.gguf$", path.name)
    if found is None:
        return [path]
    stem = path.name[: found.start()]
    if int(found[1]) != 1:
        raise InputError(f"{path}: is a later part of a model; give the first, {stem}-00001-of-{found[2]}.gguf")
    files = [path.with_name(f"{stem}-{number:05}-of-{found[2]}.gguf") for number in range(1, int(found[2]) + 1)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing beside it ({len(missing)} of {len(files)} parts)")
    return files
