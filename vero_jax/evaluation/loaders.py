"""From a benchmark's rows to its questions, by number, through Grain. What can't be used is counted, never asked."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grain

from vero_jax.data.formats import BrokenRow
from vero_jax.data.geometry import MAX_ASPECT_RATIO
from vero_jax.data.images import ImageError, one_at_a_time, open_image, to_rgb
from vero_jax.errors import CountedError
from vero_jax.evaluation.benchmark import Benchmark, Row, Source
from vero_jax.evaluation.layout import picture_places
from vero_jax.evaluation.rows import Rows, open_rows
from vero_jax.evaluation.variants import Variant

T = TypeVar("T")

MAX_IMAGES = 32
_BASE64_COLUMNS = frozenset(("image", "bytes"))
_OF_DATA = (LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError, RecursionError, MemoryError)
"""What stored values and pictures provoke; it costs their own question only. Other errors are our own mistakes."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question as the model is asked, and the fields that its answer is scored by."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    """The conversation, with a bare image part for each picture."""
    images: tuple[bytes, ...]
    """Encoded, in the order of their parts."""
    row: Row
    """Without pictures; with the first picture's `width` and `height` in pixels."""


@dataclasses.dataclass(frozen=True)
class Broken:
    """A question that can't be asked."""

    id: str
    reason: str
    """A short phrase to count by."""
    detail: str


Item: TypeAlias = "Question | Broken"


def questions(
    benchmark: Benchmark,
    root: Path,
    variant: Variant,
    *,
    limit: int | None = None,
    done: Container[str] = (),
) -> grain.MapDataset:
    """The questions of a benchmark in the order of its rows, as a Grain data set of `Question` and `Broken`.

    Args:
      root: the folder of all data sets, see `rows.open_rows`.
      variant: says what is added to questions.
      limit: only so many of them, at equal distances because many data sets are sorted, with all rows that go with
        these; None: all.
      done: ids to leave out.

    Raises:
      MissingData: the data is not there.
    """
    rows = open_rows(benchmark.source, root)
    return grain.MapDataset.source(QuestionSource(benchmark, rows, variant, limit=limit, done=done))


class QuestionSource:
    """Questions by number (Grain's random access protocol). A row may hold several."""

    def __init__(
        self,
        benchmark: Benchmark,
        rows: Rows,
        variant: Variant,
        *,
        limit: int | None = None,
        done: Container[str] = (),
    ):
        self._benchmark, self._rows, self._variant = benchmark, rows, variant
        places = self._limited(limit)
        self.ids = [self._name(*place) for place in places]
        """Of all questions within the limit, those that are done included."""
        self._places = [place for place in places if self._name(*place) not in done]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Item:
        number, part = self._places[index]
        name = self._name(number, part)
        try:
            return _question(self._benchmark, self._rows, self._rows[number], part, self._variant, name)
        except CountedError as error:
            return Broken(name, error.reason, error.detail)
        except _OF_DATA as error:
            return Broken(name, "row not usable", f"{type(error).__name__}: {error}"[:200])

    def _name(self, number: int, part: int) -> str:
        return f"{self._benchmark.name}-{number}" + (f"-{part}" if part else "")

    def _limited(self, limit: int | None) -> list[tuple[int, int]]:
        """(row, question in it) of all questions within the limit."""
        source, belongs_to = self._benchmark.source, self._benchmark.belongs_to
        if source.expand is not None:
            counts = [_count(source, row) for row in self._rows.without_pictures()]
            return _spread([(row, part) for row, count in enumerate(counts) for part in range(count)], limit)
        if limit is None or belongs_to is None:
            return _spread([(row, 0) for row in range(len(self._rows))], limit)
        rows = self._rows.without_pictures()
        owners = [_owner(belongs_to, row) for row in rows]
        own = set(_spread([place for place, owner in enumerate(owners) if owner is None], limit))
        ids = {str(rows[place].get("id")) for place in own if isinstance(rows[place], Mapping)}
        return [(place, 0) for place, owner in enumerate(owners) if (place in own if owner is None else owner in ids)]


def _spread(places: list[T], limit: int | None) -> list[T]:
    """So many of the places at equal distances, in their order; all without a limit."""
    if limit is None or limit >= len(places):
        return places
    return [places[number * len(places) // limit] for number in range(limit)]


def order(name: str) -> tuple[int, ...]:
    """The place of a question among those of its benchmark, from its id."""
    return tuple(int(part) for part in name.split("-")[1:])


def _owner(belongs_to: Callable[[Row], tuple[str, str] | None], row: Row) -> str | None:
    """The id of the row that a row's answer goes to; None for a question of its own, and for what can't be read."""
    try:
        place = belongs_to(row)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return None if place is None else place[0]


def _question(
    benchmark: Benchmark, rows: Rows, stored: Mapping[str, Any], part: int, variant: Variant, name: str
) -> Question:
    if isinstance(stored, BrokenRow):
        raise CountedError(stored.reason, stored.detail)
    source = benchmark.source
    values = source.images(stored) if source.images else stored_images(stored)
    if not values:
        raise ImageError("image missing", "the row has none")
    pictures = [picture_bytes(value, rows.folder, base64_text=source.base64) for value in values[:MAX_IMAGES]]
    if source.compose is not None:
        pictures = list(source.compose(pictures))
    pictures, size = _checked(pictures, variant.min_image_side)
    plain = {key: value for key, value in stored.items() if not _is_picture(key, value, source)}
    plain = {"width": size[0], "height": size[1]} | plain
    row = source.expand(plain)[part] if source.expand else plain
    messages = _encodable(benchmark.messages(row, variant, len(pictures)))
    return Question(name, tuple(messages), tuple(pictures), row)


def _encodable(value: Any) -> Any:
    """A conversation without halves of surrogate pairs, which JSON inside of a row can hold and no tokenizer takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {key: _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value


def stored_images(row: Row) -> list[Any]:
    """The pictures of a row: its `image`, `images` or numbered columns, in order."""
    found: list[Any] = []
    for key in ("image", "images", *(f"image_{number}" for number in range(MAX_IMAGES))):
        value = row.get(key)
        found += value if isinstance(value, list | tuple) else [] if value is None else [value]
    return found


def picture_bytes(value: Any, folder: Path, *, base64_text: bool) -> bytes:
    """The encoded picture that a row holds or names.

    Args:
      value: bytes, {"bytes", "path"}, base64 text, or the name of a file under `folder`, see `layout.picture_places`.

    Raises:
      ImageError: there is none, or it lies outside of the folder.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise ImageError("image missing", f"a {type(value).__name__} in its place")
    if base64_text:
        try:
            return base64.b64decode(value.rpartition(",")[2] if value.startswith("data:") else value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError("image not readable", f"not base64 ({error})") from None
    for place in picture_places(value):
        try:
            path = folder / place
            if path.is_file():
                return path.read_bytes()
        except OSError as error:  # a name longer than a file's may be, a file that may not be read
            raise ImageError("image not readable", f"{value:.200} ({error.strerror})") from None
    raise ImageError("image missing", f"no file {value:.200} in the data set's folder")


def _checked(pictures: Sequence[bytes], min_side: int) -> tuple[list[bytes], tuple[int, int]]:
    """The pictures, those that are too small enlarged, and the first one's stored size. All of them are decoded."""
    from PIL import Image

    kept: list[bytes] = []
    first = (0, 0)
    for data in pictures:
        image = open_image(data)
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            raise ImageError("image shape not usable", f"{image.width}x{image.height} pixels, too long for Qwen-VL")
        with one_at_a_time(image):
            image = to_rgb(image)
        first = image.size if not kept else first
        if min(image.size) < min_side:
            factor = min_side / min(image.size)
            size = tuple(max(round(side * factor), min_side) for side in image.size)
            buffer = io.BytesIO()
            image.resize((size[0], size[1]), Image.Resampling.BICUBIC).save(buffer, "PNG")
            data = buffer.getvalue()
        kept.append(data)
    return kept, first


def _is_picture(key: str, value: Any, source: Source) -> bool:
    if source.base64 and key in _BASE64_COLUMNS:
        return True
    if isinstance(value, list) and value:
        return all(_is_picture("", item, source) for item in value)
    return isinstance(value, bytes | bytearray) or (
        isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes)
    )


def _count(source: Source, row: Row) -> int:
    """How many questions a row holds; one that can't be read, or has none, is one, and is counted as broken later."""
    if isinstance(row, BrokenRow) or source.expand is None:
        return 1
    try:
        return max(len(source.expand(row)), 1)
    except _OF_DATA:  # the same row fails again where it is counted
        return 1
