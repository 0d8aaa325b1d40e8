"""What lives on the device while answers are sampled, and how it lies on the mesh.

Axes: A shards of the mesh's row axes (each with lanes, prompts and pages of its own), L layers, B lanes of a shard,
U prompts of a shard, M lanes that may read one prompt, X and Y pages of a shard, s tokens of a page, K key-value heads,
C head dimension, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from vero_jax.models.choice import Warping
from vero_jax.parallel.mesh import ROW_AXES


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pages:
    """A pool of keys and values in pages of s tokens."""

    k: Float[Array, "L A X K s C"]
    v: Float[Array, "L A X K s C"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts that are being answered; each is held once, whatever the number of its samples."""

    pages: Pages
    final: Float[Array, "A U D"]
    """Hidden state at the last token, from which the first token of every sample is drawn."""
    next_position: Int32[Array, "A U"]
    """Rotary position of the first response token."""
    seen: Bool[Array, "A U V"] | None
    """Which tokens the prompt holds; None where no sampling has penalties."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
    """The responses that are being drawn, one to a lane, as far as only the device knows them."""

    count: Int32[Array, "A B"]
    """Tokens drawn of the lane's response."""
    last: Int32[Array, "A B"]
    """The newest of them, whose keys the next step computes."""
    done: Bool[Array, "A B"]
    first: Int32[Array, "A B"]
    """First column of the newest tokens that belongs to the response."""
    recent: Pages
    """Keys and values of the newest tokens, one page per lane (X = B). All lanes write the same column in a step, so
    that nothing is scattered; full columns go to the pool."""
    counts: Int32[Array, "A B V"] | None
    """How often each token was drawn, see `models.choice`; None where no sampling has penalties."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Assignment:
    """What the host has decided for a round: who is in which lane, and whose the pages are."""

    new: Bool[Array, "A B"]
    """Lanes whose response begins with this round."""
    active: Bool[Array, "A B"]
    """Lanes that have a response at all."""
    unit: Int32[Array, "A B"]
    """Prompt of the lane's response."""
    member: Int32[Array, "A B"]
    """Its place among the lanes that read the prompt."""
    readers: Int32[Array, "A U M"]
    """The lanes that read each prompt; B where there are fewer."""
    limit: Int32[Array, "A B"]
    """Most tokens of the response."""
    keys: UInt32[Array, "A B 2"]
    warping: Warping
    """Each field 'A B'."""
    prompt_unit: Int32[Array, "A X"]
    prompt_high: Int32[Array, "A X"]
    """Tokens in each page of the prompts; 0 for a free page."""
    own_lane: Int32[Array, "A Y"]
    own_low: Int32[Array, "A Y"]
    own_high: Int32[Array, "A Y"]
    """Of the pages of responses: places [low, high) hold tokens."""
    prompt_used: Int32[Array, ""]
    own_used: Int32[Array, ""]
    """No page at or behind these is in use."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """What a round has drawn, by column."""

    tokens: Int32[Array, "A B s"]
    logprobs: Float32[Array, "A B s"]
    warped_logprobs: Float32[Array, "A B s"] | None
    top_ids: Int32[Array, "A B s N"] | None
    top_logprobs: Float32[Array, "A B s N"] | None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of one sampling session; all that its programs depend on, beside the lanes and the buckets.

    Attributes:
      lanes, prompts: of a shard.
      readers: most lanes that read one prompt at a time.
      prompt_page, response_page: tokens of a page.
      prompt_pages, response_pages: pages of a shard.
      truncated, penalties, warped_logprobs, alternatives: what the choice of tokens must be able to do.
    """

    shards: int
    lanes: int
    prompts: int
    readers: int
    prompt_page: int
    response_page: int
    prompt_pages: int
    response_pages: int
    truncated: bool = False
    penalties: bool = False
    warped_logprobs: bool = False
    alternatives: int = 0
    whole_pools: bool = False
    """Whether attention goes over all pages at once, used or not."""

    def lane_rungs(self) -> tuple[int, ...]:
        """Numbers of lanes that there are programs for, falling: the last responses move together."""
        rungs = [self.lanes]
        while rungs[-1] >= 8 and len(rungs) < 5:
            rungs.append(-(-rungs[-1] // 2))
        return tuple(rungs)

    def page_chunk(self, pages: int, page: int) -> int:
        """Pages per step of attention: a sixteenth of the pool, but no fewer than 512 tokens.

        On a GPU all of them: every turn of a loop there waits for the host, which costs more than unused pages.
        """
        if self.whole_pools:
            return pages
        return min(pages, max(-(-pages // 16), -(-512 // page)))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shardings: shards over the row axes, key-value heads over the tensor axis where it divides them."""

    mesh: Mesh
    kv_heads: int

    def _at(self, *spec: object) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    @property
    def whole(self) -> NamedSharding:
        return self._at()

    @property
    def rows(self) -> NamedSharding:
        return self._at(ROW_AXES)

    @property
    def heads(self) -> str | None:
        size = self.mesh.shape["tensor"]
        return "tensor" if size > 1 and self.kv_heads % size == 0 else None

    def pages(self) -> Pages:
        kv = self._at(None, ROW_AXES, None, self.heads)
        return Pages(kv, kv)  # type: ignore[arg-type]

    def prompts(self, sizes: Sizes) -> Prompts:
        rows = self.rows
        return Prompts(self.pages(), rows, rows, rows if sizes.penalties else None)  # type: ignore[arg-type]

    def lanes(self, sizes: Sizes) -> Lanes:
        rows = self.rows
        return Lanes(rows, rows, rows, rows, self.pages(), rows if sizes.penalties else None)  # type: ignore[arg-type]

    def window(self, sizes: Sizes) -> Window:
        rows = self.rows
        listed = rows if sizes.alternatives else None
        return Window(rows, rows, rows if sizes.warped_logprobs else None, listed, listed)  # type: ignore[arg-type]

    def assignment(self) -> Assignment:
        rows, whole = self.rows, self.whole
        fields = {field.name: rows for field in dataclasses.fields(Assignment)}
        warping = Warping(*(rows for _ in dataclasses.fields(Warping)))  # type: ignore[arg-type]
        return Assignment(**fields | {"warping": warping, "prompt_used": whole, "own_used": whole})  # type: ignore[arg-type]

    def cache(self) -> NamedSharding:
        """Keys of prompts that are being read in chunks, 'L B K S C'."""
        return self._at(None, ROW_AXES, self.heads)
