"""Which files of a data set hold a benchmark's rows, from their names alone: the same for a folder and for the hub."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from vero_jax.data.readme import readme_configs
from vero_jax.evaluation.benchmark import Source

_PARQUET = ".parquet"
_JSON = (".jsonl", ".json")
_WORDS = {
    "train": ("training",),
    "validation": ("val", "valid", "dev"),
    "val": ("validation", "valid", "dev"),
    "test": ("testing",),
    "eval": ("evaluation",),
}
"""What files of a split may be called instead."""
_SPLITS = frozenset((*_WORDS, *(word for words in _WORDS.values() for word in words), "testmini"))
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?:-[0-9a-f]+)?\.parquet")
_MOST_STARS = 2
"""Times `**` in a pattern; more would take too long on long names, and no data set has them."""
_DEEPEST = 2
"""Folders above a file of rows that no config names."""


class MissingData(ValueError):
    """A benchmark's data is not there, or none of it can be read: the benchmark is not run."""


def row_files(source: Source, names: Collection[str], readme: str, where: str) -> list[str]:
    """The files of a source's rows, in order.

    They are, in this order: the JSON files of `source.annotations`; what the README's header gives for the config and
    split; `<config>/<split>-*.parquet`, or without a config `data/<split>-*.parquet` or the same elsewhere;
    `<split>.jsonl` or `.json`; a file whose name has the split among its words, such as vg_test.jsonl. Parquet files
    come before JSON.

    Args:
      names: of all files, relative, with "/".
      readme: text of README.md, "" without one.
      where: what the data set is called in messages.

    Raises:
      MissingData: a config or the split is not there, or not all of its files.
    """
    if source.annotations:
        return _annotations(source, names, where)
    found: list[str] = []
    without = []
    for config in source.configs or ("",):
        files = _config_files(source.split, config, names, readme)
        found += files
        if not files:
            without.append(config)
    if source.configs and not found and not any(name.endswith(_PARQUET) for name in names):
        found = _json_file(source.split, names)
    elif source.configs and without:
        raise MissingData(f"{where} has no {source.split} files of {', '.join(without)}")
    if not found:
        raise MissingData(f"{where} has no {source.split}-*.parquet and no {source.split}.jsonl")
    _check_shards(found, where)
    return found


def unfinished_mark(source: Source) -> str:
    """Name of the file that is in a data set's folder while a source's rows and pictures are downloaded to it."""
    wanted = [source.split, *source.configs, source.annotations]
    return f".unfinished-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]}"


def picture_places(name: str) -> tuple[str, ...]:
    """Where a picture that a row names may lie in its data set's folder, likeliest first; nowhere outside of it.

    As it is named, in `images`, or without the first part of the name, which may be the data set's own.
    """
    plain = posixpath.normpath(name)
    if plain.startswith(("/", "..")) or "\0" in plain:
        return ()
    rest = plain.partition("/")[2]
    return (plain, f"images/{plain}", *([rest] if rest else []))


def _annotations(source: Source, names: Collection[str], where: str) -> list[str]:
    found = sorted(name for name in names if posixpath.dirname(name) == source.annotations and name.endswith(".json"))
    if not found:
        raise MissingData(f"{where}/{source.annotations} has no .json files")
    return found


def _config_files(split: str, config: str, names: Collection[str], readme: str) -> list[str]:
    stated = _stated(split, config, names, readme)
    if stated:
        return stated
    for folder in (config,) if config else ("data", ""):
        start = f"{folder}/" if folder else ""
        ways = (f"{start}{split}-*.parquet", f"{start}{split}.parquet", f"{start}{split}/*.parquet")
        found = sorted(name for name in names if any(_fits(name, way) for way in ways))
        if found:
            return found
    if config:
        return []
    found = sorted(name for name in names if _fits(name, f"*/{split}-*.parquet"))
    return found or _json_file(split, names) or _by_words(split, names)


def _json_file(split: str, names: Collection[str]) -> list[str]:
    """<split>.jsonl, else <split>.json."""
    return [f"{split}{suffix}" for suffix in _JSON if f"{split}{suffix}" in names][:1]


def _stated(split: str, config: str, names: Collection[str], readme: str) -> list[str]:
    """What the README's header says of a config's split; of the default config without one."""
    configs = readme_configs(readme)
    named = [found for found in configs if found.get("config_name") == (config or "default")]
    if not config and not named:
        named = [found for found in configs if found.get("default")] or (configs if len(configs) == 1 else [])
    patterns = [pattern for found in named for pattern in _patterns(found.get("data_files"), split)]
    files = sorted(name for name in names if any(_fits(name, pattern) for pattern in patterns))
    for suffixes in ((_PARQUET,), _JSON[:1], _JSON[1:]):
        found = [name for name in files if name.endswith(suffixes)]
        if found:
            return found
    return []


def _patterns(data_files: object, split: str) -> list[str]:
    entries = data_files if isinstance(data_files, list) else []
    paths = [entry.get("path") for entry in entries if isinstance(entry, Mapping) and entry.get("split") == split]
    flat = [path for several in paths for path in (several if isinstance(several, list) else [several])]
    return [path for path in flat if isinstance(path, str) and path.count("**") <= _MOST_STARS]


def _by_words(split: str, names: Collection[str]) -> list[str]:
    """Files by the words of their names: those with the split's own name, else with another word for it."""
    shallow = sorted(name for name in names if name.count("/") <= _DEEPEST)
    kinds = [[name for name in shallow if name.endswith(suffix)] for suffix in (_PARQUET, *_JSON)]
    for words in ({split}, set(_WORDS.get(split, ()))):
        for files in kinds:
            found = [name for name in files if _words(name) & words]
            if found:
                return found
    parquet = kinds[0]
    unnamed = split == "train" and not any(_words(name) & _SPLITS for name in parquet)
    return parquet if unnamed else []  # as the hub reads a data set whose files name no split


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", posixpath.splitext(posixpath.basename(name))[0].lower()))


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern is a name's, part by part; `**` is any folders."""
    return _parts_fit(name.split("/"), posixpath.normpath(pattern).split("/"))


def _parts_fit(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        rest = patterns[1:] or ["*"]
        return any(_parts_fit(parts[start:], rest) for start in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _parts_fit(parts[1:], patterns[1:])


def _check_shards(files: Sequence[str], where: str) -> None:
    """Raises where a file of a series is missing, or files of two series would be read as one."""
    series: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name in files:
        match = _SHARD.fullmatch(name)
        if match is not None:
            series[match["stem"]][int(match["total"])].append(int(match["number"]))
    for stem, totals in series.items():
        for total, numbers in totals.items():
            if len(set(numbers)) < len(numbers) or len(totals) > 1:
                raise MissingData(f"{where} has {stem} files of several versions; leave those of one")
            if len(numbers) < total:
                raise MissingData(f"{where} has {len(numbers)} of {total} files of {stem}; download the others, too")
