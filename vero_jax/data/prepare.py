"""Prepares data once: rows from the hub, a snapshot, other files or the built-in set become ArrayRecord files.

    python -m vero_jax.data.prepare --source <hub id | folder | file | vero_mini> --out <dir>

Each config is made in a hidden folder and appears by one rename when it is complete, so that a killed or a second
process does no harm, and the same command again does only what is missing. A folder made with `--out` can itself be
given as `data.source`; without `--out` the data goes where a training run looks for it, named by a fingerprint of what
it was made from.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vero_jax.config import DataConfig, MiniConfig
from vero_jax.data import export, hub, making, origins, prepared
from vero_jax.data.origins import Origin
from vero_jax.data.prepared import ExampleSource, Part, PreparedData
from vero_jax.errors import UserError, friendly
from vero_jax.runtime.files import atomic_write

__all__ = ["ExampleSource", "Part", "PrepareOptions", "PreparedData", "prepare", "prepare_into"]

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What of a source is prepared, and how."""

    configs: tuple[str, ...] = ()
    """Only these; none means all."""
    limit_per_split: int | None = None
    """Only the first rows of every split of every config."""
    overwrite: bool = False
    """Make configs anew that are damaged or were made from other files; without it they are refused."""
    keep_downloads: bool = True
    """Keep the files of a hub id after they were prepared."""


def prepare(source: str, data_cfg: DataConfig, *, say: Say = lambda line: None) -> PreparedData:
    """Prepares in the cache what is not prepared yet, and returns all of it.

    Args:
      source: a hub id, a folder in the hub's layout, a file of rows, a folder that `--out` made, or "vero_mini".
      data_cfg: cache folder, split names and the built-in set's sizes and seed.
      say: gets a line before each piece of work, and now and then while it goes on.

    Raises:
      UserError: the source is missing or broken, or no row of it can be used.
    """
    return prepare_into(None, source, data_cfg, PrepareOptions(), say=say)


def prepare_into(
    out: Path | None,
    source: str,
    data_cfg: DataConfig,
    options: PrepareOptions,
    *,
    say: Say = lambda line: None,
    show: Say | None = None,
) -> PreparedData:
    """`prepare`, into a folder of one's own.

    Args:
      out: TFDS's `data_dir`, which gets `vero_600k/<config>/1.0.0/`; None is the cache of `data_cfg`.
      source, data_cfg, say: as for `prepare`.
      options: what of it.
      show: gets a line about every second while a config is made, for a live display.

    Raises:
      UserError: as `prepare`, or `out` has a config of that name that was made from other files.
    """
    started = time.monotonic()
    if (folder := _prepared_folder(source)) is not None:
        data = _opened(source, folder, options if out is None else None)
        _check_rows(data, source, data_cfg)
        return data
    root = out if out is not None else Path(data_cfg.cache_dir).expanduser() / "prepared"
    todo = find_origins(source, data_cfg, options, root, say)
    making.make_root(root)
    making.remove_leftovers(root)
    folders = []
    for number, origin in enumerate(todo, 1):
        data_dir = out if out is not None else root / f"{origin.name}-{origin.fingerprint}"
        progress = making.Progress(f"{origin.name} ({number} of {len(todo)})", say, show or (lambda line: None))
        folders.append(making.make(origin, data_dir, root, overwrite=options.overwrite, say=say, progress=progress))
        origin.discard()
    data = prepared.gather(source, folders)
    prepared.count_duplicates(data)
    data = dataclasses.replace(data, seconds=time.monotonic() - started)
    _check_rows(data, source, data_cfg)
    return data


def find_origins(source: str, data_cfg: DataConfig, options: PrepareOptions, root: Path, say: Say) -> list[Origin]:
    """The configs of a source, in its order.

    Raises:
      UserError: the source is missing or has none of the configs asked for.
    """
    splits = tuple(dict.fromkeys((data_cfg.train_split, data_cfg.val_split)))
    if source == "vero_mini":
        found = origins.mini_origins(data_cfg)
    elif hub.is_hub_id(source):
        found = hub.hub_origins(source, splits, root, keep=options.keep_downloads, say=say)
    else:
        path = Path(source).expanduser()
        if root.resolve() == (path if path.is_dir() else path.parent).resolve():
            raise UserError(f"{root} is where the source {path} lies; choose another folder for what is made of it")
        found = origins.local_origins(path, splits)
    if options.configs:
        found = origins.chosen(found, options.configs)
    if options.limit_per_split is not None:
        found = [origins.limited(origin, options.limit_per_split) for origin in found]
    return found


def _prepared_folder(source: str) -> Path | None:
    """The folder that `--out` made, if `source` is one."""
    folder = Path(source).expanduser()
    return folder if folder.is_dir() and prepared.find_parts(folder) else None


def _opened(source: str, folder: Path, options: PrepareOptions | None) -> PreparedData:
    if options is None or options.configs or options.limit_per_split or options.overwrite:
        raise UserError(
            f"{folder} is prepared already, and no part of it can be prepared again; give what it was made from as "
            "--source"
        )
    return prepared.open_prepared(source, folder)


def _check_rows(data: PreparedData, source: str, data_cfg: DataConfig) -> None:
    if any(data.count(split) for split in (data_cfg.train_split, data_cfg.val_split)):
        return
    if data.splits:
        raise UserError(
            f"{source} has rows of {' and '.join(data.splits)}, none of {data_cfg.train_split} or "
            f"{data_cfg.val_split}; set data.train_split and data.val_split"
        )
    raise UserError(f"no row of {source} can be used:\n{data.table()}")


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command: prepares a source and prints what became of its rows."""
    arguments = _parser().parse_args(argv)
    data_cfg = dataclasses.replace(
        DataConfig(),
        source=arguments.source,
        train_split=arguments.train_split,
        val_split=arguments.val_split,
        mini=dataclasses.replace(MiniConfig(), seed=arguments.mini_seed),
    )
    names = [name.strip() for text in arguments.configs or () for name in text.split(",")]
    options = PrepareOptions(
        configs=tuple(name for name in names if name),
        limit_per_split=arguments.limit_per_split,
        overwrite=arguments.overwrite,
        keep_downloads=not arguments.discard_downloads,
    )
    if options.limit_per_split is not None and options.limit_per_split < 1:
        raise UserError(f"--limit-per-split is {options.limit_per_split}; it must be at least 1")
    out = Path(arguments.out).expanduser() if arguments.out else None
    say = functools.partial(print, flush=True)
    if arguments.jsonl:
        _export(Path(arguments.jsonl).expanduser(), arguments.source, data_cfg, options, say)
        if out is None:
            return 0
    with making.live_line() as show:
        data = prepare_into(out, arguments.source, data_cfg, options, say=say, show=show)
    if out is not None:
        atomic_write(out / prepared.REPORT, prepared.report_text(data))
    print(data.table())
    if arguments.verify:
        files = [size for part in data.parts for _, size in prepared.verify(part)]
        print(f"\n{len(files)} files, {sum(files) / 1e6:,.1f} MB: every checksum is right")
    place = out or _prepared_folder(arguments.source) or Path(data_cfg.cache_dir).expanduser() / "prepared"
    print(f"\n{len(data.parts)} configs in {place}, {data.seconds:.1f} s")
    return 0


def _export(folder: Path, source: str, data_cfg: DataConfig, options: PrepareOptions, say: Say) -> None:
    splits = tuple(dict.fromkeys((data_cfg.train_split, data_cfg.val_split)))
    if _prepared_folder(source) is not None:
        raise UserError(
            f"{source} is prepared data, which has not all that an export needs; give what it was made from"
        )
    todo = find_origins(source, data_cfg, options, folder, say)
    for path, rows in export.export_jsonl(todo, folder, splits, say=say).items():
        say(f"{path}: {rows} rows")


def _parser() -> argparse.ArgumentParser:
    defaults = DataConfig()
    parser = argparse.ArgumentParser(prog="python -m vero_jax.data.prepare", description="Prepare training data.")
    parser.add_argument(
        "--source", required=True, help="hub id, folder of a hub snapshot, file of rows, prepared folder, or vero_mini"
    )
    parser.add_argument("--out", help=f"where to (default: the cache of training, {defaults.cache_dir})")
    parser.add_argument("--configs", action="append", metavar="A,B", help="only these configs (one per source)")
    parser.add_argument("--limit-per-split", type=int, metavar="N", help="only the first N rows of every split")
    parser.add_argument("--overwrite", action="store_true", help="replace configs that were made from other files")
    downloads = parser.add_mutually_exclusive_group()
    downloads.add_argument("--keep-downloads", action="store_true", help="keep a hub id's files (the default)")
    downloads.add_argument(
        "--discard-downloads", action="store_true", help="remove each config's files once it is prepared"
    )
    parser.add_argument("--verify", action="store_true", help="read everything again and compare checksums")
    parser.add_argument("--jsonl", metavar="DIR", help="write the official JSONL export there; with --out, prepare too")
    parser.add_argument("--train-split", default=defaults.train_split)
    parser.add_argument("--val-split", default=defaults.val_split)
    parser.add_argument("--mini-seed", type=int, default=defaults.mini.seed, help="seed of vero_mini")
    return parser


if __name__ == "__main__":
    sys.exit(main())
