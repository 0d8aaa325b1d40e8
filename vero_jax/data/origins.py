"""What there is to prepare: the configs of a source, each with its rows and a fingerprint of what makes them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vero_jax.config import DataConfig
from vero_jax.data import builder, mini, readers
from vero_jax.data.prepared import FORMAT, digest
from vero_jax.data.readers import Row
from vero_jax.data.readme import readme_configs
from vero_jax.errors import UserError

Rows = Mapping[str, Callable[[], Iterator[Row]]]
"""By split: starts reading from the first row."""
_SAMPLE = 65536  # bytes read at each place of a large file for its fingerprint
_WHOLE = 64 << 20  # larger files are sampled


@dataclasses.dataclass(frozen=True)
class Origin:
    """One config before it is prepared."""

    name: str
    builder: str
    """"vero_600k" or "vero_mini"."""
    fingerprint: str
    """Of the files its rows are made from."""
    position: int
    """Its place among the configs of the whole source."""
    size: int
    """Bytes of the files, about as many as the prepared files will have; 0 where nobody can tell."""
    rows: Callable[[Callable[[str], None]], Rows]
    """Gives the rows, after downloading their files where they are elsewhere; tells the callable what it does."""
    missing: int = 0
    """Bytes that have to be downloaded first."""
    discard: Callable[[], None] = lambda: None
    """Removes what `rows` downloaded."""


def limited(origin: Origin, limit: int) -> Origin:
    """The first `limit` rows of every split."""

    def rows(say: Callable[[str], None]) -> Rows:
        return {split: _first(start, limit) for split, start in origin.rows(say).items()}

    fingerprint = digest([origin.fingerprint, "first rows", limit])
    return dataclasses.replace(origin, rows=rows, fingerprint=fingerprint, size=0)


def _first(start: Callable[[], Iterator[Row]], limit: int) -> Callable[[], Iterator[Row]]:
    return lambda: itertools.islice(start(), limit)


def chosen(origins: Sequence[Origin], names: Sequence[str]) -> list[Origin]:
    """The origins of these names, in the order of the source.

    Raises:
      UserError: one of the names is no config of the source.
    """
    known = [origin.name for origin in origins]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.4) or known[:3]
            raise UserError(
                f"--configs names {name!r}, which the source does not have; did you mean {' or '.join(near)}?"
            )
    return [origin for origin in origins if origin.name in names]


def mini_origins(data_cfg: DataConfig) -> list[Origin]:
    """The built-in set; made anew when its settings or its code change."""
    settings = data_cfg.mini
    sizes = {data_cfg.train_split: settings.train_size, data_cfg.val_split: settings.val_size}
    for name, size in (("train_size", settings.train_size), ("val_size", settings.val_size)):
        if size < 1:
            raise UserError(f"data.mini.{name} is {size}; it must be at least 1")
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(mini.__file__).parent.glob("*.py"))]
    made_from = [FORMAT, sizes, settings.seed, code]
    return [
        Origin(
            name=config.name,
            builder=builder.VeroMini.name,
            fingerprint=digest([config.name, *made_from]),
            position=place,
            size=0,
            rows=functools.partial(_same, config.rows),
        )
        for place, config in enumerate(builder.mini_configs(sizes, settings.seed))
    ]


def _same(rows: Rows, say: Callable[[str], None]) -> Rows:
    del say
    return rows


def local_origins(path: Path, splits: Sequence[str]) -> list[Origin]:
    """What `path` holds, in the order of the `configs:` of its README.md where there is one, else by name.

    Raises:
      UserError: there are no rows.
    """
    found = readers.find_row_files(path, splits)
    order = readme_order(_text(path / "README.md")) if path.is_dir() else {}
    found.sort(key=lambda files: order.get(files.name, len(order)))  # stable: the rest stays in order of names
    beside = path if path.is_dir() else path.parent
    origins = []
    for place, files in enumerate(found):
        # Several files of rows may go into one folder: "jsonl" would name them all.
        name = re.sub(r"\W+", "_", path.stem) if files.name == "jsonl" else files.name
        made_from: list[Any] = [FORMAT, name, splits, [_file_identity(file) for file in files.files]]
        pictures = [(str(item.relative_to(beside)), item.stat().st_size) for item in files.pictures]
        made_from.append(pictures)
        origins.append(
            Origin(
                name=name,
                builder=builder.Vero600k.name,
                fingerprint=digest(made_from),
                position=place,
                size=sum(file.stat().st_size for file in files.files) + sum(size for _, size in pictures),
                rows=functools.partial(_same, files.rows),
            )
        )
    return origins


def readme_order(text: str) -> dict[str, int]:
    """Places of the configs in the YAML header of a hub repository's README.md, by config name and by folder.

    The header's order is that of the official export, and need not be that of the names.
    """
    order: dict[str, int] = {}
    for place, config in enumerate(readme_configs(text)):
        order.setdefault(str(config.get("config_name")), place)
        files = config.get("data_files")
        for entry in files if isinstance(files, list) else []:
            paths = entry.get("path") if isinstance(entry, dict) else entry
            for path in paths if isinstance(paths, list) else [paths]:
                folder = str(path).rpartition("/")[0]
                if folder:
                    order.setdefault(folder, place)
    return order


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _file_identity(path: Path) -> tuple[str, int, str]:
    """(name, size, hash). Of files over 64 MiB, 64 places are hashed, both ends among them, and the time of change."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= _WHOLE:
                return path.name, size, hashlib.file_digest(file, "sha256").hexdigest()
            sampled = hashlib.sha256()
            for place in np.linspace(0, size - _SAMPLE, 64).astype(np.int64).tolist():
                file.seek(place)
                sampled.update(file.read(_SAMPLE))
            sampled.update(str(path.stat().st_mtime_ns).encode())
            return path.name, size, sampled.hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); change its rights, or give another source"
        ) from error
