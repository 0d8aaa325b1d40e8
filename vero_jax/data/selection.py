"""Which rows of a split a run uses, decided from the index alone: no image is read, nothing is dropped uncounted."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32, Int64, UInt8

from vero_jax.config import MixtureConfig
from vero_jax.data import schema
from vero_jax.data.chat import IMAGE_MARKER, PromptError
from vero_jax.data.coordinates import LONGEST_ADDITION, POINTING_TYPES
from vero_jax.errors import UserError

if TYPE_CHECKING:
    from vero_jax.data.prepare import PreparedData
    from vero_jax.data.processor import Processor

_FORMAT = 1  # of the files that keep what was found
_TOKENIZED_AT_ONCE = 2000
TOO_LONG = "prompt too long"
ROWS_IN_USE = "rows in use"


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which rows of a split are used: their numbers in order, and why the others are not."""

    split: str
    rows: Int64[np.ndarray, "n"]
    domains: Int32[np.ndarray, "n"]
    """The domain of each of `rows`, as its place in `names`."""
    names: tuple[str, ...]
    dropped: Mapping[str, int]
    """Rows left out, by reason."""
    judged: int = 0
    """How many of `rows` need a judge."""
    largest_prompt: int = 0
    """Bytes of the patches of the row with the largest images; 0 where no processor was given."""

    @property
    def available(self) -> dict[str, int]:
        """Rows of each domain that has some."""
        counts = np.bincount(self.domains, minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts, strict=True) if count}

    def __str__(self) -> str:
        text = f"{self.split}: {len(self.rows)} questions"
        if self.dropped:
            text += ", left out " + ", ".join(f"{count} ({reason})" for reason, count in self.dropped.items())
        return text


def select_rows(
    prepared: PreparedData,
    split: str,
    *,
    judge: str = "none",
    own_types: Collection[str] = (),
    processor: Processor | None = None,
    mixture: MixtureConfig | None = None,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Selection:
    """Leaves out the rows that cannot or shall not be used in this run, from the index alone (no image is read).

    Args:
      prepared: the data.
      split: its split.
      judge: "none" leaves out the questions that only a judge can score.
      own_types: reward types that the user's own functions score, so that they need no judge.
      processor: with one, prompts that it cannot make, or longer than its `max_prompt_length`, are left out too.
      mixture: which domains and sources are wanted; None wants all.
      cache_dir: where to keep what was found about the prompts, by a fingerprint of data and processor.
      say: gets a line before work that takes time.

    Raises:
      UserError: nothing is left, or a wanted domain or source does not exist.
    """
    columns = ["domain", "source", "reward_type"]
    table = prepared.index_table(split, columns)
    reasons: list[str] = []
    code = np.zeros(len(table), np.uint8)  # 0: used; else the place of the reason, counted from 1

    def leave_out(these: Bool[np.ndarray, "n"], reason: str) -> None:
        if reason not in reasons:
            reasons.append(reason)
        code[these & (code == 0)] = reasons.index(reason) + 1

    if mixture is not None:
        _check_names(prepared, mixture)
        leave_out(~_wanted(table["domain"], mixture.domains, mixture.leave_out), "domain not wanted")
        leave_out(~_wanted(table["source"], mixture.sources, mixture.leave_out_sources), "source not wanted")
    needs_judge = _is_in(table["reward_type"], set(schema.JUDGE_TYPES) - set(own_types))
    if judge == "none":
        leave_out(needs_judge, "needs a judge, reward.judge is none")
    sizes = np.zeros(len(table), np.int64)
    if processor is not None:
        problems, named = prompt_problems(prepared, split, processor, cache_dir, say)
        for place, reason in enumerate(named, start=1):
            leave_out(problems == place, reason)
        if processor.image_settings is not None:
            sizes = _patch_bytes(prepared.index_table(split, ["widths", "heights"]), processor)
    rows = np.flatnonzero(code == 0)
    dropped = {reason: int((code == place).sum()) for place, reason in enumerate(reasons, start=1)}
    encoded = table["domain"].combine_chunks().dictionary_encode()
    selection = Selection(
        split=split,
        rows=rows.astype(np.int64),
        domains=encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)[rows],
        names=tuple(encoded.dictionary.to_pylist()),
        dropped={reason: count for reason, count in dropped.items() if count},
        judged=int(needs_judge[rows].sum()),
        largest_prompt=int(sizes[rows].max(initial=0)),
    )
    if not len(rows):
        raise UserError(
            f"no question of {prepared.source} is left to use ({selection}); check the split's name and limits"
        )
    return selection


def _is_in(column: pa.ChunkedArray, values: Collection[str]) -> Bool[np.ndarray, "n"]:
    return pc.is_in(column, value_set=pa.array(sorted(values), pa.string())).to_numpy(zero_copy_only=False)


def _wanted(column: pa.ChunkedArray, only: Sequence[str], without: Sequence[str]) -> Bool[np.ndarray, "n"]:
    """Rows with one of the names in `only` (any, where that is empty) and none of those in `without`."""
    kept = _is_in(column, only) if only else np.ones(len(column), bool)
    return kept & ~_is_in(column, without)


def _check_names(prepared: PreparedData, mixture: MixtureConfig) -> None:
    """UserError if a domain or source is named that no split of the data has."""
    for what, names in (
        ("domain", (*mixture.domains, *mixture.leave_out)),
        ("source", (*mixture.sources, *mixture.leave_out_sources)),
    ):
        if not names:
            continue
        columns = [prepared.index_table(split, [what])[what] for split in prepared.splits]
        present = {name for column in columns for name in pc.unique(column).to_pylist()}
        for name in names:
            if name not in present:
                near = difflib.get_close_matches(name, present, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {sorted(present)[:12]}"
                raise UserError(f"data.mixture names the {what} {name!r}, which the data has not; {hint}")


def prompt_problems(
    prepared: PreparedData,
    split: str,
    processor: Processor,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[UInt8[np.ndarray, "n"], list[str]]:
    """For each row of a split 0, or which of the returned reasons (counted from 1) keeps it from being a prompt.

    Images are not opened: their tokens follow from their stored sizes. What was found is kept in `cache_dir`.
    """
    names = [_FORMAT, prepared.fingerprint, split, processor.fingerprint, processor.max_prompt_length]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
    file = Path(cache_dir).expanduser() / "prompts" / f"{split}-{digest}.npz" if cache_dir else None
    count = prepared.count(split)
    if file is not None and (kept := _read_kept(file, count)) is not None:
        return kept
    table = prepared.index_table(split, ["messages", "reward_type", "widths", "heights"])
    problems, reasons = _look_at_prompts(table, processor, say)
    if file is not None:
        draft = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as stream:
                np.savez_compressed(stream, problems=problems, reasons=np.asarray(json.dumps(reasons)))
            draft.replace(file)
        except OSError as error:  # only time is lost by it
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            warnings.warn(f"what was found about the prompts is not kept: {error}", stacklevel=2)
    return problems, reasons


def _read_kept(file: Path, count: int) -> tuple[UInt8[np.ndarray, "n"], list[str]] | None:
    try:
        with np.load(file) as kept:
            problems, reasons = kept["problems"], json.loads(str(kept["reasons"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent or broken: it is made again
        return None
    return (problems, reasons) if problems.shape == (count,) else None


def _look_at_prompts(
    table: pa.Table, processor: Processor, say: Callable[[str], None]
) -> tuple[UInt8[np.ndarray, "n"], list[str]]:
    """See `prompt_problems`.

    A token has at least one byte of text, so that most rows are known to fit from the length of their text; only the
    others are tokenized.
    """
    problems = np.zeros(len(table), np.uint8)
    reasons: list[str] = []

    def mark(row: int, reason: str) -> None:
        if reason not in reasons:
            reasons.append(reason)
        problems[row] = reasons.index(reason) + 1

    images = pc.list_value_length(table["widths"]).to_numpy(zero_copy_only=False).astype(np.int64)
    image_tokens = np.zeros(len(table), np.int64)
    owner, tokens, refusals = _image_tokens(table, processor)
    np.add.at(image_tokens, owner, tokens)
    for row, reason in refusals.items():
        mark(row, reason)
    surely_fits = _fits_by_its_bytes(table, processor, images, image_tokens)
    open_rows = np.flatnonzero(~surely_fits & (problems == 0))
    if len(open_rows) > 20_000:
        say(f"counting the tokens of {len(open_rows):,} prompts")
    placeholder = (
        None if processor.image_token_id is None else processor.tokenizer.id_to_token(processor.image_token_id)
    )
    for start in range(0, len(open_rows), _TOKENIZED_AT_ONCE):
        rows = open_rows[start : start + _TOKENIZED_AT_ONCE]
        chunk = table.select(["messages", "reward_type"]).take(pa.array(rows)).to_pydict()
        texts: list[str] = []
        measured: list[int] = []
        for row, messages, kind in zip(rows.tolist(), chunk["messages"], chunk["reward_type"], strict=True):
            try:
                text = processor.text(json.loads(messages), kind, int(images[row]))
            except PromptError as error:
                mark(row, error.reason)
                continue
            if placeholder and text.count(placeholder) != images[row]:
                mark(row, "image tokens do not match the images")
                continue
            texts.append(text)
            measured.append(row)
        for row, encoding in zip(
            measured, processor.tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            length = len(encoding.ids) - images[row] + image_tokens[row]
            if processor.max_prompt_length is not None and length > processor.max_prompt_length:
                mark(row, TOO_LONG)
    return problems, reasons


def _fits_by_its_bytes(
    table: pa.Table, processor: Processor, images: Int64[np.ndarray, "n"], image_tokens: Int64[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Rows that make a prompt within the limit for sure: one plain user's turn whose bytes alone would fit."""
    messages = table["messages"]

    def array(values: Any) -> np.ndarray:
        return values.to_numpy(zero_copy_only=False)

    simple = (
        array(pc.starts_with(messages, '[{"role": "user", "content": "'))
        & (array(pc.count_substring(messages, '"role"')) == 1)
        & (array(pc.count_substring(messages, IMAGE_MARKER)) == images)
        & ~array(pc.match_substring(messages, "<|"))  # could be a control token
    )
    size = array(pc.binary_length(messages)).astype(np.int64)
    size *= np.where(size == array(pc.utf8_length(messages)), 1, 3)  # composing characters can grow them threefold
    pointing = _is_in(table["reward_type"], POINTING_TYPES)
    # Words for coordinates become others, of at most six times their length.
    size = np.where(pointing, 6 * size + LONGEST_ADDITION, size)
    for count in np.unique(images[simple]):
        turn = {"role": "user", "content": IMAGE_MARKER * int(count) + "?"}
        try:
            around = len(processor.text([turn], "", int(count)).encode()) + 64
        except PromptError:  # each such row is looked at, and says why
            simple &= images != count
            continue
        size[images == count] += around
    limit = processor.max_prompt_length
    return simple if limit is None else simple & (size + image_tokens <= limit)


def _image_tokens(
    table: pa.Table, processor: Processor
) -> tuple[Int64[np.ndarray, "i"], Int64[np.ndarray, "i"], dict[int, str]]:
    """(row, merged visual tokens) of every image, and the reason of each row with an image of an impossible shape."""
    widths, heights = (table[name].combine_chunks() for name in ("widths", "heights"))
    owner = pc.list_parent_indices(widths).to_numpy(zero_copy_only=False).astype(np.int64)
    # Both sides in one number: rows of pairs take numpy ten times as long to tell apart.
    sides = [column.flatten().to_numpy(zero_copy_only=False).astype(np.int64) for column in (widths, heights)]
    shapes, which = np.unique(sides[0] << 32 | sides[1], return_inverse=True)
    tokens = np.zeros(len(shapes), np.int64)
    refused: dict[int, str] = {}
    for place, shape in enumerate(shapes.tolist()):
        width, height = shape >> 32, shape & 0xFFFFFFFF
        try:
            tokens[place] = processor.image_tokens(width, height)
        except PromptError as error:
            refused[place] = error.reason
    refusals = {
        int(row): refused[int(place)]
        for row, place in zip(owner, which, strict=True)
        if int(place) in refused
    } if refused else {}  # fmt: skip
    return owner, tokens[which], refusals


def _patch_bytes(table: pa.Table, processor: Processor) -> Int64[np.ndarray, "n"]:
    """Bytes of the uint8 patches of each row's images."""
    settings = processor.image_settings
    if settings is None:
        return np.zeros(len(table), np.int64)
    owner, tokens, _ = _image_tokens(table, processor)
    sizes = np.zeros(len(table), np.int64)
    np.add.at(sizes, owner, tokens * settings.merge_size**2 * settings.patch_elements)
    return sizes


def hold_out(selection: Selection, share: float) -> tuple[Selection, Selection]:
    """Splits a selection: (the rest, about `share` of each domain's rows), the same rows every time.

    The rows held out are evenly spread over their domain, at least one of every domain that has two.

    Raises:
      UserError: no domain has two rows.
    """
    held = np.zeros(len(selection.rows), bool)
    for domain in range(len(selection.names)):
        places = np.flatnonzero(selection.domains == domain)
        if len(places) > 1:
            count = max(1, round(share * len(places)))
            held[places[np.arange(count) * len(places) // count]] = True
    if not held.any():
        raise UserError(f"{len(selection.rows)} questions are too few to hold any out for validation; add some")

    def part(these: Bool[np.ndarray, "n"], dropped: Mapping[str, int]) -> Selection:
        return dataclasses.replace(
            selection, rows=selection.rows[these], domains=selection.domains[these], dropped=dropped
        )

    return part(~held, {**selection.dropped, "held out for validation": int(held.sum())}), part(held, {})


def data_identity(prepared: PreparedData, selection: Selection) -> dict[str, str]:
    """Fingerprints of each part of the data and of the rows in use: what a position in the data depends on."""
    rows = f"{zlib.crc32(selection.rows.tobytes()):08x}"
    return {part.config: part.fingerprint for part in prepared.parts} | {ROWS_IN_USE: rows}


def check_same_data(saved: Mapping[str, str], mine: Mapping[str, str]) -> None:
    """Compares the `data_identity` of a checkpoint with that of the run that goes on from it.

    Raises:
      UserError: they differ; it names the parts of the data that changed.
    """
    changed = sorted(name for name in {*saved, *mine} if saved.get(name) != mine.get(name))
    parts = [name for name in changed if name != ROWS_IN_USE]
    if parts:
        named = ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
        raise UserError(
            f"the data changed since the checkpoint was written, in {named}: put the old files back, or start a new "
            "run (another name, or trainer.resume=never)"
        )
    if changed:
        raise UserError(
            "the rows in use changed since the checkpoint was written, although the data did not (other limits, "
            "another tokenizer or chat template): put them back, or start a new run (another name, or "
            "trainer.resume=never)"
        )


def mean_areas(prepared: PreparedData, selection: Selection) -> dict[str, float]:
    """The mean area in pixels of the stored images of each domain's selected rows; 0 for a domain without images."""
    table = prepared.index_table(selection.split, ["widths", "heights"])
    widths, heights = (table[name].combine_chunks() for name in ("widths", "heights"))
    owner = pc.list_parent_indices(widths).to_numpy(zero_copy_only=False).astype(np.int64)
    domain = np.full(len(table), -1, np.int64)
    domain[selection.rows] = selection.domains
    used = domain[owner] >= 0
    area = widths.flatten().to_numpy(zero_copy_only=False).astype(np.float64) * heights.flatten().to_numpy(
        zero_copy_only=False
    )
    count = np.bincount(domain[owner][used], minlength=len(selection.names))
    total = np.bincount(domain[owner][used], weights=area[used], minlength=len(selection.names))
    mean = total / np.maximum(count, 1)
    return {name: float(mean[place]) for place, name in enumerate(selection.names) if name in selection.available}
