"""Data sets on the model hub: what a repository holds, and its files, one config at a time.

The client (`huggingface_hub`) keeps files in its own cache, goes on where a broken connection ended, and reads its
settings from the environment: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vero_jax.data import readers
from vero_jax.data.builder import Vero600k
from vero_jax.data.disk import friendly_disk
from vero_jax.data.origins import Origin, Rows, local_origins, readme_order
from vero_jax.data.prepared import FORMAT, digest, file_sha256
from vero_jax.errors import UserError
from vero_jax.runtime.files import atomic_write

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
README = "README.md"


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file of a repository."""

    path: str
    size: int
    hash: str
    """sha256 of its content where it is kept in large file storage, else git's hash of it."""
    sha256: bool
    """Whether `hash` is a sha256."""


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    commit: str
    files: tuple[HubFile, ...]
    readme: str
    """Text of its README.md; "" without one."""


def is_hub_id(source: str) -> bool:
    """Whether it looks like "owner/name" and no such path exists here."""
    return bool(_ID.fullmatch(source)) and not Path(source).exists()


def hub_origins(
    repository: str, splits: Sequence[str], memory: Path, *, keep: bool = True, say: Callable[[str], None]
) -> list[Origin]:
    """The configs of a repository: folders of Parquet files, in the order of the README's `configs:`.

    Without a network, the listing of an earlier call serves, so that prepared data can be used and downloaded files be
    prepared; else a snapshot in the hub client's cache.

    Args:
      repository: such as "zlab-princeton/Vero-600k".
      splits: only their files are looked at.
      memory: folder in which the last listing is kept.
      keep: False removes the files of a config that were downloaded for preparing it.
      say: gets a line before each download.

    Raises:
      UserError: the repository is not to be had, or holds no Parquet files of these splits.
    """
    remembered = memory / f".hub-{repository.replace('/', '--')}.json"
    try:
        listing = list_repository(repository)
    except UserError as error:
        offline = remembered_listing(remembered)
        if offline is not None:
            say(f"{error}; going on with what is known from an earlier time (commit {offline.commit[:8]})")
            listing = offline
        elif (snapshot := _cached_snapshot(repository)) is not None:
            say(f"{error}; going on with the files in the hub client's cache")
            return local_origins(snapshot, splits)
        else:
            raise UserError(f"{error}; there is no folder of that name either") from error
    else:
        if listing != remembered_listing(remembered):  # a cache that is complete may be read-only
            with friendly_disk(memory):
                memory.mkdir(parents=True, exist_ok=True)
            remember_listing(remembered, listing)
    wanted = re.compile(rf"(?:{'|'.join(re.escape(split) for split in splits)})(?:-[^/]*)?\.parquet")
    folders: dict[str, list[HubFile]] = {}
    for file in sorted(listing.files, key=lambda file: file.path):
        folder, _, name = file.path.rpartition("/")
        if wanted.fullmatch(name):
            folders.setdefault(folder, []).append(file)
    if not folders:
        raise UserError(
            f"the data set {repository} holds no {' or '.join(f'{split}-*.parquet' for split in splits)}; check its "
            "files, or data.train_split and data.val_split"
        )
    order = readme_order(listing.readme)
    origins = []
    for place, folder in enumerate(sorted(folders, key=lambda folder: (order.get(folder, len(order)), folder))):
        files = tuple(folders[folder])
        download = _Download(repository, listing.commit, folder, files, tuple(splits), keep)
        size = sum(file.size for file in files)
        origins.append(
            Origin(
                name=_config_name(repository, folder),
                builder=Vero600k.name,
                fingerprint=digest(
                    [FORMAT, folder, list(splits), [(file.path, file.size, file.hash) for file in files]]
                ),
                position=place,
                size=size,
                rows=download.rows,
                missing=sum(file.size for file in download.absent()),
                discard=download.discard,
            )
        )
    return origins


def _config_name(repository: str, folder: str) -> str:
    """The folder's own name; the repository's where it has no configs."""
    name = folder.rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", name if name not in ("", "data") else repository.rpartition("/")[2], flags=re.ASCII)


def download_folder() -> Path:
    """Where the hub client keeps files."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@dataclasses.dataclass
class _Download:
    """The files of one config."""

    repository: str
    commit: str
    folder: str
    files: tuple[HubFile, ...]
    splits: tuple[str, ...]
    keep: bool
    fetched: list[Path] = dataclasses.field(default_factory=list)
    """What `rows` downloaded in this process."""

    def absent(self) -> list[HubFile]:
        """The files that are not in the cache."""
        return [file for file in self.files if self._cached(file) is None]

    def _cached(self, file: HubFile) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, file.path, revision=self.commit, repo_type="dataset")
        return Path(found) if isinstance(found, str) else None

    def rows(self, say: Callable[[str], None]) -> Rows:
        """Downloads what is not here, checks it, and gives the rows.

        Raises:
          UserError: a file is not to be had, or is not what the hub has.
        """
        absent = self.absent()
        if absent:
            size = sum(file.size for file in absent)
            say(f"downloading {self.folder or self.repository}: {len(absent)} files, {size / 1e6:,.1f} MB")
        paths = [self._checked(file) for file in self.files]
        # There may be folders below, which are other configs.
        folders = readers.find_row_files(paths[0].parent, self.splits)
        return next(found.rows for found in folders if paths[0] in found.files)

    def _checked(self, file: HubFile) -> Path:
        path = self._cached(file)
        if path is None:
            path = fetch(self.repository, file.path, self.commit)
            self.fetched.append(path)
        check_file(path, file, self.repository)
        return path

    def discard(self) -> None:
        if not self.keep:
            for path in self.fetched:
                _remove(path)
            self.fetched.clear()


def check_file(path: Path, file: HubFile, repository: str) -> None:
    """Removes a downloaded file that is not what the hub has, and says so.

    Raises:
      UserError: it has another size, or another checksum than that of the hub's large file storage.
    """
    size = path.stat().st_size
    if size == file.size and (not file.sha256 or file_sha256(path) == file.hash):
        return
    _remove(path)
    what = f"{size:,} bytes instead of {file.size:,}" if size != file.size else "another checksum than the hub gives"
    raise UserError(f"{file.path} of {repository} was damaged on its way ({what}) and is removed; start again")


def _remove(path: Path) -> None:
    """Removes a file of the client's cache: the name in the snapshot, and the content that it is a link to."""
    content = path.resolve()
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def list_repository(repository: str) -> Listing:
    """What the hub's data set of that id holds now.

    Raises:
      UserError: it is not to be had.
    """
    from huggingface_hub import HfApi

    with hub_errors(repository):
        info = HfApi().dataset_info(repository, files_metadata=True)
        siblings = info.siblings or []
        files = tuple(
            HubFile(
                path=item.rfilename,
                size=int(item.size or 0),
                hash=item.lfs.sha256 if item.lfs is not None else str(item.blob_id),
                sha256=item.lfs is not None,
            )
            for item in siblings
        )
        readme = ""
        if any(file.path == README for file in files):
            readme = fetch(repository, README, str(info.sha)).read_text(encoding="utf-8", errors="replace")
    return Listing(str(info.sha), files, readme)


def fetch(repository: str, path: str, commit: str, folder: Path | None = None, *, again: bool = False) -> Path:
    """A file of a data set, downloaded unless it is here.

    Args:
      folder: gets the file under its own path; by default the client's cache does.
      again: downloads it in any case.

    Raises:
      UserError: it is not to be had, or the disk does not take it.
    """
    from huggingface_hub import hf_hub_download

    place = folder or download_folder()
    with friendly_disk(place), hub_errors(repository, path), quiet():
        return Path(
            hf_hub_download(
                repository, path, repo_type="dataset", revision=commit, local_dir=folder, force_download=again
            )
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars where nobody looks at a terminal: a log would hold thousands of them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def remember_listing(path: Path, listing: Listing) -> None:
    """Keeps a listing for times without a network."""
    atomic_write(path, json.dumps(dataclasses.asdict(listing)))


def remembered_listing(path: Path) -> Listing | None:
    """The listing that `remember_listing` kept, None where there is none."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(HubFile(**file) for file in value["files"])
        return Listing(value["commit"], files, value["readme"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cached_snapshot(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


@contextlib.contextmanager
def hub_errors(repository: str, path: str = "") -> Iterator[None]:
    """One sentence for every way in which the hub does not give what is asked for."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    what = f"{path} of the data set {repository}" if path else f"the data set {repository}"
    try:
        yield
    except OfflineModeIsEnabled as error:
        cause: Exception = error
        reason = "HF_HUB_OFFLINE is set; unset it, or give the folder of a snapshot"
    except GatedRepoError as error:
        cause = error
        reason = "it may be downloaded only by those who asked for it there; ask, then log in with `hf auth login`"
    except RepositoryNotFoundError as error:
        cause = error
        reason = "the hub has no data set of that name that you may see; check the id, or log in with `hf auth login`"
    except HFValidationError as error:
        cause = error
        reason = f"it is no valid id ({str(error).splitlines()[0]}); check it"
    except HfHubHTTPError as error:
        cause = error
        advice = "try again later"
        if error.response is not None and error.response.status_code in (401, 403):
            advice = "check HF_TOKEN, or log in with `hf auth login`"
        reason = f"the hub refuses ({str(error).splitlines()[0]}); {advice}"
    except (LocalEntryNotFoundError, httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        cause = error
        reason = (
            "the hub cannot be reached; check the network, or give the folder of a snapshot made where there is one"
        )
    except OSError as error:
        if "Consistency check failed" not in str(error):
            raise
        cause = error
        reason = "the connection ended too early; start again, complete files are kept"
    else:
        return
    raise UserError(f"cannot get {what}: {reason}") from cause
