"""The data sets of benchmarks from the hub, into the folder that `rows.open_rows` reads; only files that are needed.

Rows come first, then the pictures that they name. A file that is here, with the size that the hub gives, is not
downloaded again, so that a second start goes on where the first one stopped; a broken connection goes on inside of its
file. The client reads its settings from the environment: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from vero_jax.data.disk import check_space, friendly_disk
from vero_jax.data.formats import BrokenRow
from vero_jax.data.hub import (
    README,
    HubFile,
    Listing,
    check_file,
    fetch,
    list_repository,
    quiet,
    remember_listing,
    remembered_listing,
)
from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import Benchmark, Source
from vero_jax.evaluation.layout import MissingData, picture_places, row_files, unfinished_mark
from vero_jax.evaluation.loaders import MAX_IMAGES, stored_images
from vero_jax.evaluation.rows import Rows, find_folder, open_rows

THREADS = 8
"""Files, or listings, that are asked for at a time."""
_MEMORY = ".download.json"
"""In a data set's folder: what was downloaded, for starts without a network and for changes on the hub."""
_MANY = 50
"""From so many files on, progress is said."""
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

_REFUSALS = (OSError, RuntimeError, ValueError, TypeError, LookupError)
"""Of the client: files without a length, hf_xet's errors, a proxy's page or other JSON than the hub's. Our own are
ValueErrors."""

Say = Callable[[str], None]


def download(benchmarks: Sequence[Benchmark], root: Path, say: Say) -> dict[str, str]:
    """Downloads what the benchmarks need to `root/<owner>/<name>`, as far as it is not there.

    Without a network, data that an earlier call has completed serves. One data set that is not to be had does not keep
    the others from being downloaded.

    Args:
      root: the folder of all data sets, as for `loaders.questions`.
      say: gets what will be downloaded, with its size, before each download; and progress.

    Returns:
      why the data of a benchmark is not there, by its name; nothing for those whose data is.
    """
    reasons: dict[str, str] = {}
    wanted: dict[str, list[Benchmark]] = {}
    for task in benchmarks:
        elsewhere = _elsewhere(task.source, root)
        if elsewhere is None:
            wanted.setdefault(task.source.repo, []).append(task)
        else:
            say(f"{task.name}: lies in {elsewhere} already, which is left as it is")
    with quiet(), concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        listings = dict(zip(wanted, pool.map(_listing, wanted), strict=True))
    data_sets: list[tuple[Benchmark, _DataSet, list[HubFile]]] = []
    for repository, tasks in wanted.items():
        listing, folder = listings[repository], root / repository
        data_set = None if isinstance(listing, UserError) else _DataSet(repository, folder, listing)
        for task in tasks:
            try:
                if data_set is not None:
                    data_sets.append((task, data_set, data_set.rows(task.source)))
                elif isinstance(listing, UserError):
                    _check_offline(task.source, root, folder, listing)
                    say(f"{task.name}: {listing}; going on with what is in {folder}")
            except (UserError, MissingData) as error:
                reasons[task.name] = str(error)
                say(f"{task.name}: {error}")
    _say_all(data_sets, root, say)
    for task, data_set, files in data_sets:
        try:
            data_set.complete(task, files, root, say)
        except _REFUSALS as error:
            reasons[task.name] = _sentence(error, task.source.repo)
            say(f"{task.name}: {reasons[task.name]}")
    return reasons


@dataclasses.dataclass
class _DataSet:
    """A data set on the hub and its folder here."""

    repository: str
    folder: Path
    listing: Listing

    def __post_init__(self) -> None:
        self._files = {file.path: file for file in self.listing.files if _is_plain(file.path)}
        memory = remembered_listing(self.folder / _MEMORY)
        self._known = {file.path: file for file in memory.files} if memory is not None else {}

    def rows(self, source: Source) -> list[HubFile]:
        """The files of a source's rows, and the README, which says which they are. Raises `MissingData`."""
        names = row_files(source, self._files, self.listing.readme, f"the data set {self.repository}")
        return [self._files[name] for name in ([README] if README in self._files else []) + names]

    def absent(self, files: Sequence[HubFile]) -> list[HubFile]:
        """Those that are not here as the hub has them now."""
        return [file for file in files if not self._is_here(file)]

    def pictures(self) -> list[HubFile]:
        """All files that are pictures by their names."""
        return [file for file in self._files.values() if file.path.lower().endswith(_PICTURES)]

    def complete(self, task: Benchmark, files: Sequence[HubFile], root: Path, say: Say) -> None:
        """Downloads the rows of a task, then the pictures that they name.

        Raises:
          UserError: a file is not to be had, or the disk does not take it.
          MissingData: the rows can't be read, or none of their pictures is a file of the data set.
        """
        mark = self.folder / unfinished_mark(task.source)
        self._get(files, task.name, mark, say)
        try:
            pictures = self._named_pictures(task.source, open_rows(task.source, root, unfinished=True))
        except MissingData:
            self._end(mark)  # another start would bring no more
            raise
        self._get(pictures, f"pictures of {task.name}", mark, say)
        kept = self._known | {file.path: file for file in (*files, *pictures)}
        memory = Listing(self.listing.commit, tuple(kept[path] for path in sorted(kept)), self.listing.readme)
        if memory != remembered_listing(self.folder / _MEMORY):  # a folder that is complete may be read-only
            remember_listing(self.folder / _MEMORY, memory)
            self._known = kept
        self._end(mark)

    def _is_here(self, file: HubFile) -> bool:
        path = self.folder / file.path
        known = self._known.get(file.path)
        return path.is_file() and path.stat().st_size == file.size and (known is None or known.hash == file.hash)

    def _named_pictures(self, source: Source, rows: Rows) -> list[HubFile]:
        found: dict[str, HubFile] = {}
        named = lost = 0
        for name in _picture_names(source, rows):
            named += 1
            places = picture_places(name)
            path = next((place for place in places if place in self._files), None)
            if path is not None:
                found[path] = self._files[path]
            else:
                lost += not any((self.folder / place).is_file() for place in places)
        if named and lost == named:
            raise MissingData(
                f"the pictures of {self.repository} are no files of the data set; put them into {self.folder} under "
                "the names that its rows give them"
            )
        return list(found.values())

    def _begin(self, mark: Path) -> None:
        with friendly_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            mark.touch()

    def _end(self, mark: Path) -> None:
        if mark.exists():
            with friendly_disk(self.folder):
                mark.unlink()

    def _get(self, files: Sequence[HubFile], what: str, mark: Path, say: Say) -> None:
        absent = self.absent(files)
        if not absent:
            return
        size = sum(file.size for file in absent)
        say(f"downloading {what} ({self.repository}): {len(absent):,} files, {size / 1e6:,.1f} MB")
        if not all((self.folder / file.path).exists() for file in absent):
            self._begin(mark)
        check_space(f"the data set {self.repository}", [(self.folder, size)])
        self._begin(mark)  # now also where all of it is here in an older version
        pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        try:
            with quiet():  # here, and not in each thread, where the first to end would undo it
                futures = [pool.submit(self._fetch, file) for file in absent]
                for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                    future.result()
                    if len(absent) >= _MANY and done % (len(absent) // 10) == 0:
                        say(f"{what}: {done:,} of {len(absent):,} files")
        finally:
            pool.shutdown(cancel_futures=True)

    def _fetch(self, file: HubFile) -> None:
        again = (self.folder / file.path).exists()  # another size, or an older version
        check_file(
            fetch(self.repository, file.path, self.listing.commit, self.folder, again=again), file, self.repository
        )


def _listing(repository: str) -> Listing | UserError:
    try:
        return list_repository(repository)
    except _REFUSALS as error:
        return UserError(_sentence(error, repository))


def _sentence(error: Exception, repository: str) -> str:
    """One line about what went wrong."""
    if isinstance(error, UserError | MissingData):
        return str(error)
    return f"cannot get the data set {repository}: {type(error).__name__} ({' '.join(str(error).split())[:300]})"


def _elsewhere(source: Source, root: Path) -> Path | None:
    """Where a user keeps the data under `root`, if it is not where it would be downloaded."""
    try:
        folder = find_folder(source.repo, root)
        if folder == root / source.repo:
            return None
        open_rows(source, root)
    except MissingData:
        return None
    return folder


def _check_offline(source: Source, root: Path, folder: Path, error: UserError) -> None:
    """Raises `error` unless the rows are here, and all files of an earlier download."""
    try:
        open_rows(source, root)
    except MissingData:
        raise error from None
    memory = remembered_listing(folder / _MEMORY)
    absent = _DataSet(source.repo, folder, memory).absent(memory.files) if memory is not None else []
    if absent:
        raise UserError(f"{error}; of the files in {folder}, {len(absent)} are missing or of another size")


def _say_all(data_sets: Sequence[tuple[Benchmark, _DataSet, list[HubFile]]], root: Path, say: Say) -> None:
    """What is to be downloaded altogether; how many pictures rows name is known only when they are here."""
    absent = {
        (data_set.repository, file.path): file.size
        for _, data_set, files in data_sets
        for file in data_set.absent(files)
    }
    pictures = {
        (data_set.repository, file.path): file.size
        for _, data_set, files in data_sets
        if not any(file.path.endswith(".parquet") for file in files)
        for file in data_set.absent(data_set.pictures())
    }
    if not absent and not pictures:
        return
    more = f", and of {sum(pictures.values()) / 1e6:,.1f} MB of pictures those that rows name" if pictures else ""
    say(f"to download to {root}: {len(absent):,} files, {sum(absent.values()) / 1e6:,.1f} MB{more}")


def _picture_names(source: Source, rows: Rows) -> Iterator[str]:
    """The names of files in the rows' places of pictures, where the rows do not hold the pictures themselves."""
    if source.base64 or rows.embed_pictures:
        return
    for row in rows.without_pictures():
        if isinstance(row, BrokenRow):
            continue
        try:
            values = list(source.images(row) if source.images else stored_images(row))
        except (LookupError, TypeError, ValueError, AttributeError):  # its loader counts it
            continue
        for value in values[:MAX_IMAGES]:
            name = value.get("path") if isinstance(value, Mapping) else value
            if isinstance(name, str) and name:
                yield name


def _is_plain(name: str) -> bool:
    """Whether a name is of a file inside of its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
