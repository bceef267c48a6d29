"""Checkpoints of the Hugging Face Hub: the configuration and the headers of files, by ranges, never weights.

What the local cache holds comes first. Endpoint, offline mode, tokens and proxies are those of `huggingface_hub`.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

from sim.problem.checkpoint.checkpoint import Checkpoint
from sim.problem.checkpoint.gguf_file import gguf_checkpoint, read_header
from sim.problem.checkpoint.local import CONFIG, GGUF_SUFFIX, QUANTISATION, read_path, with_quantisation
from sim.problem.checkpoint.safetensors_files import header_of, weight_files
from sim.problem.widths import Tensor
from traces.errors import InputError, shown
from traces.files import parse_object

TIMEOUT_S = 4.0
"""For each answer, so that a line says within five seconds that there is no network."""
AT_ONCE = 8
"""Requests for headers at a time."""
MOST_CONFIG_BYTES = 16 << 20

_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?(?::(?P<file>[\w.-]{1,200}))?"
)
_FILES = re.compile(r"\.(json|toml|gguf|safetensors|jsonl|yaml)$", re.IGNORECASE)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository, one of its revisions, and of several GGUF files the one meant: org/name@revision:Q4_K_M."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What a text names; None where it is no such name."""
        found = _ID.fullmatch(text)
        if found is None or _FILES.search(found["repo"]) or ".." in found["repo"]:
            return None
        return cls(found["repo"], found["revision"], found["file"])

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f":{self.file}" if self.file else "")


def read_hub(which: HubId) -> Checkpoint:
    """The checkpoint in a repository. Raises InputError, one line, where it cannot be had."""
    from huggingface_hub import constants

    folder = _cached_folder(which)
    here = None if folder is None else _cached(which, folder)
    if here is not None and (here.tensors or constants.is_offline_mode()):
        return here
    if constants.is_offline_mode():
        raise InputError(
            f"{which}: is neither a file or folder here nor in the cache of the Hub, and HF_HUB_OFFLINE forbids to ask "
            f"it: give a preset, a path, or let it be asked"
        )
    revision = which.revision if folder is None or here is None else folder.name
    try:
        return _Repository(HubId(which.repo, revision, which.file), str(which)).checkpoint()
    except InputError:
        if here is not None:  # its configuration, without the network
            return here
        raise


def _cached_folder(which: HubId) -> Path | None:
    """The folder of a revision in the local cache, where there is anything of it."""
    import huggingface_hub
    from huggingface_hub import errors

    if which.file is None:
        config = huggingface_hub.try_to_load_from_cache(which.repo, CONFIG, revision=which.revision)
        if isinstance(config, str):
            return Path(config).parent
    try:
        return Path(huggingface_hub.snapshot_download(which.repo, revision=which.revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, ValueError, OSError):
        return None


def _cached(which: HubId, folder: Path) -> Checkpoint | None:
    """The model in a folder of the cache, if it is there."""
    path = folder
    if which.file is not None or not (folder / CONFIG).exists():
        try:
            path = folder / _gguf_of([one.name for one in folder.glob(f"*{GGUF_SUFFIX}")], which.file, str(which))
        except InputError:  # the Hub may have it
            return None
    found = read_path(path)
    return replace(found, name=f"{which.repo}{'' if path is folder else f':{path.stem}'}", source=f"{which} (cached)")


def _gguf_of(names: Sequence[str], wanted: str | None, source: str) -> str:
    """The GGUF file that is meant: the only one, or the one that the user names in part."""
    ggufs = sorted(name for name in names if name.endswith(GGUF_SUFFIX) and "mmproj" not in name.lower())
    ggufs = [name for name in ggufs if (found := _SPLIT.search(name)) is None or int(found[1]) == 1]
    mine = [name for name in ggufs if _means(wanted.lower(), name)] if wanted else ggufs
    if len(mine) == 1:
        return mine[0]
    if not ggufs:
        raise InputError(f"{source}: has neither a {CONFIG} nor a GGUF file: it holds no model")
    listed = ", ".join(Path(name).name for name in (mine or ggufs)[:8])
    few = "names none" if not mine else f"may be any of {len(mine)}"
    raise InputError(f"{source}: {few}: say which of its GGUF files behind a colon, such as :Q4_K_M ({listed})")


Answer = TypeVar("Answer")


class _Repository:
    """A repository as it is on the Hub now: its files by name, each fetched by ranges."""

    def __init__(self, which: HubId, source: str) -> None:
        import huggingface_hub
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is documented

        self._which, self._source = which, source
        self._session = huggingface_hub.get_session()
        self._headers = build_hf_headers()
        network = import_module(type(self._session).__module__.partition(".")[0])
        self._unreachable: tuple[type[Exception], ...] = (network.HTTPError, network.InvalidURL, OSError, ValueError)
        hub = huggingface_hub.HfApi()
        info = self._asking(lambda: hub.model_info(which.repo, revision=which.revision, timeout=TIMEOUT_S))
        self._revision = info.sha or which.revision or "main"
        self._names = sorted(one.rfilename for one in info.siblings or ())

    def checkpoint(self) -> Checkpoint:
        """What the repository holds."""
        if self._which.file is not None or CONFIG not in self._names:
            return self._gguf()
        config = self._json(CONFIG)
        beside = self._json(QUANTISATION) if QUANTISATION in self._names else None
        with ThreadPoolExecutor(AT_ONCE) as workers:
            headers = workers.map(self._header, weight_files(self._names))
            tensors = tuple(tensor for header in headers for tensor in header)
        return Checkpoint(with_quantisation(config, beside), self._which.repo, self._source, tensors)

    def _header(self, name: str) -> list[Tensor]:
        return header_of(lambda first, last: self._range(name, first, last)[0], f"{self._source}: {name}")

    def _gguf(self) -> Checkpoint:
        first = _gguf_of(self._names, self._which.file, self._source)
        split = _SPLIT.search(first)
        names = [first]
        if split is not None:
            stem = first[: split.start()]
            names = [f"{stem}-{number:05}-of-{split[2]}.gguf" for number in range(1, int(split[2]) + 1)]
        headers, sizes = [], []
        for name in names:
            found = [0]

            def read(begin: int, end: int, name: str = name, found: list[int] = found) -> bytes:
                content, found[0] = self._range(name, begin, end)
                return content

            headers.append(read_header(read, f"{self._source}: {name}"))
            sizes.append(found[0])
        return gguf_checkpoint(headers, sizes, f"{self._which.repo}:{Path(first).stem}", self._source)

    def _json(self, name: str) -> dict[str, Any]:
        content, _ = self._range(name, 0, MOST_CONFIG_BYTES)
        return parse_object(content.decode("utf-8-sig", "replace"), f"{self._source}: {name}")

    def _range(self, name: str, first: int, last: int) -> tuple[bytes, int]:
        """Bytes of a file from the first to before the last, and how long the whole file is; never more than asked."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # it is documented

        url = hf_hub_url(self._which.repo, name, revision=self._revision)
        headers = {**self._headers, "Range": f"bytes={first}-{last - 1}", "Accept-Encoding": "identity"}

        def fetch() -> tuple[bytes, int]:
            with self._session.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
                if answer.status_code == 416:  # behind the end
                    return b"", 0
                hf_raise_for_status(answer)
                skipped = first if answer.status_code == 200 else 0
                content = bytearray()
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) >= skipped + last - first:
                        break
                whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
                return bytes(content[skipped : skipped + last - first]), int(whole) if whole.isdigit() else 0

        return self._asking(fetch)

    def _asking(self, ask: Callable[[], Answer]) -> Answer:
        """The answer. Raises InputError for what the Hub refuses, and where there is no network."""
        from huggingface_hub import errors

        try:
            return ask()
        except errors.GatedRepoError:
            self._refuse("is gated: ask for access on its page, then log in (hf auth login)")
        except errors.RepositoryNotFoundError:
            self._refuse("is neither a file or folder here nor a repository of the Hub that you may read")
        except errors.RevisionNotFoundError:
            self._refuse(f"has no revision {shown(self._which.revision)}")
        except errors.HfHubHTTPError as error:
            self._refuse(f"the Hub refuses: {_first_line(error)}")
        except self._unreachable as error:
            from huggingface_hub import constants

            self._refuse(
                f"is no file or folder here, and the Hub ({constants.ENDPOINT}) cannot be reached "
                f"({type(error).__name__}): give a preset or a path"
            )

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self._source}: {why}") from None


def _means(wanted: str, name: str) -> bool:
    """Whether a name or a part of it at borders, such as Q4_K_M, is wanted."""
    low = name.lower()
    return low == wanted or re.search(rf"(^|[./_-]){re.escape(wanted)}([./_-]|$)", low) is not None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
