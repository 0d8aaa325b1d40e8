"""Groups packed into rows `[prefix | branch 1 | ... | branch n]`, several groups to a row, on the host (numpy).

A prompt stands in a row once for all of its responses. The output at the prompt's last token predicts the first token
of every branch, so which output predicts which token is data: `Rows.sources` and `Rows.targets`, one entry per response
token. Axes: B rows of a micro-batch, T tokens, P vision patches and U response tokens of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Int32

from vero_jax.data.patches import WITHOUT_WINDOWS, PatchLayout
from vero_jax.learning.aggregation import ResponseTokens
from vero_jax.models.inputs import TokenInputs, VisionInputs
from vero_jax.types import Group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What the policy reads of one micro-batch."""

    tokens: TokenInputs
    vision: VisionInputs | None
    """None when no group of the plan has an image."""
    sources: Int32[Array, "B U"]
    """Index in the row of the token whose output predicts this response token."""
    targets: Int32[Array, "B U"]
    """The response token's id."""
    responses: ResponseTokens
    """Which response of the row a token belongs to; masked at padding."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signals:
    """What the loss needs besides the policy's own log-probabilities, per response token."""

    advantages: Float32[Array, "B U"]
    sampler: Float32[Array, "B U"]
    """Log-probabilities that the sampler reported."""
    old: Float32[Array, "B U"] | None = None
    """At the start of the step; None: the current ones, exactly on policy."""
    reference: Float32[Array, "B U"] | None = None
    """Of the reference policy; None where no KL term asks for it."""


class Place(NamedTuple):
    """Where one response lies: `row` and first index `start` among the row's response tokens; whose it is."""

    row: int
    start: int
    length: int
    group: int
    response: int
    number: int
    """Its id inside the row."""


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """Which responses go to which row; arrays are made one micro-batch at a time.

    Attributes:
      sequences, tokens: denominators: responses that count in the loss and their tokens, skipped ones included.
      seen_sequences, seen_tokens: the same of the responses that are in the rows.
    """

    groups: tuple[Group, ...]
    row_length: int
    row_patches: int
    rows_per_micro_batch: int
    contents: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]
    """For each row its (group, responses)."""
    sequences: int
    tokens: int
    seen_sequences: int
    seen_tokens: int
    patch_layout: PatchLayout = WITHOUT_WINDOWS
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Responses left out because they fit no row, by reason."""
    patch_kind: tuple[int, str] = (0, "uint8")
    """Elements and type of a patch, for rows whose groups have none."""

    @property
    def micro_batches(self) -> int:
        return -(-len(self.contents) // self.rows_per_micro_batch)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, T, P), all that a compiled program depends on."""
        return self.rows_per_micro_batch, self.row_length, self.row_patches

    def filled_tokens(self) -> int:
        """Tokens in the rows, padding excluded and repeated prefixes included."""
        return sum(
            len(self.groups[g].prompt.token_ids) + sum(len(self.groups[g].responses[r].token_ids) for r in members)
            for row in self.contents
            for g, members in row
        )

    def places(self) -> Iterator[Place]:
        """Where every response in the rows lies, rows counted over the whole plan."""
        for number, row in enumerate(self.contents):
            start = count = 0
            for g, members in row:
                for r in members:
                    length = len(self.groups[g].responses[r].token_ids)
                    yield Place(number, start, length, g, r, count)
                    start, count = start + length, count + 1

    def micro_batch(self, index: int) -> tuple[Rows, Signals]:
        """The arrays of one micro-batch (numpy); rows past the last are empty."""
        B, T, P = self.shape
        U = T  # what holds no response token costs nothing, see `models.head`
        tokens: dict[str, Any] = {
            "token_ids": np.zeros((B, T), np.int32),
            "positions": np.zeros((B, T, 3), np.int32),
            "image_index": np.full((B, T), -1, np.int32),
            "groups": np.zeros((B, T), np.int32),
            "branches": np.zeros((B, T), np.int32),
        }
        vision: dict[str, Any] = {}
        if P:
            elements, dtype = self.patch_kind
            vision = {
                "patches": np.zeros((B, P, elements), dtype),
                "coords": np.zeros((B, P, 2), np.int32),
                "sizes": np.ones((B, P, 2), np.int32),
                "segments": np.zeros((B, P), np.int32),
            }
            if self.patch_layout.window:
                vision["windows"] = np.zeros((B, P), np.int32)
        targets: dict[str, Any] = {
            "sources": np.zeros((B, U), np.int32),
            "targets": np.zeros((B, U), np.int32),
            "mask": np.zeros((B, U), np.float32),
            # Padding belongs to the last response there could be, so that ids never fall along the row.
            "ids": np.full((B, U), U - 1, np.int32),
            "advantages": np.zeros((B, U), np.float32),
            "sampler": np.zeros((B, U), np.float32),
        }
        for b, row in enumerate(self.contents[index * B : (index + 1) * B]):
            self._fill(
                row,
                {name: array[b] for name, array in tokens.items()},
                {name: array[b] for name, array in vision.items()},
                {name: array[b] for name, array in targets.items()},
            )
        signals = Signals(targets.pop("advantages"), targets.pop("sampler"))
        responses = ResponseTokens(targets.pop("mask"), targets.pop("ids"), U)
        return Rows(
            TokenInputs(**tokens), VisionInputs(**vision) if P else None, responses=responses, **targets
        ), signals

    def _fill(
        self,
        row: Sequence[tuple[int, tuple[int, ...]]],
        tokens: Mapping[str, np.ndarray],
        vision: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
    ) -> None:
        """Writes one row's groups into views of its arrays."""
        t = p = u = count = frames = windows = 0
        for number, (g, members) in enumerate(row, start=1):
            group = self.groups[g]
            prompt = group.prompt
            here = slice(t, t + len(prompt.token_ids))
            tokens["token_ids"][here] = prompt.token_ids
            tokens["positions"][here] = prompt.positions
            tokens["groups"][here] = number
            if len(prompt.patches):
                patches = slice(p, p + len(prompt.patches))
                arranged = self.patch_layout.arrange(prompt.grids)
                vision["patches"][patches], vision["coords"][patches] = prompt.patches[arranged.order], arranged.coords
                vision["sizes"][patches], vision["segments"][patches] = arranged.sizes, arranged.segments + frames
                if arranged.windows is not None:
                    vision["windows"][patches] = arranged.windows + windows
                    windows += int(arranged.windows.max())
                seen = prompt.image_index >= 0
                offset = p // self.patch_layout.patches_per_token
                tokens["image_index"][here][seen] = arranged.places[prompt.image_index[seen]] + offset
                p, frames = patches.stop, frames + int(arranged.segments.max())
            t = here.stop
            last_of_prefix = t - 1
            for branch, r in enumerate(members, start=1):
                response = group.responses[r]
                n = len(response.token_ids)
                here, inside = slice(t, t + n), slice(u, u + n)
                tokens["token_ids"][here] = response.token_ids
                tokens["positions"][here] = (prompt.next_position + np.arange(n))[:, None]
                tokens["groups"][here] = number
                tokens["branches"][here] = branch
                targets["sources"][inside] = np.arange(t - 1, t + n - 1)
                targets["sources"][u] = last_of_prefix
                targets["targets"][inside] = response.token_ids
                targets["mask"][inside], targets["ids"][inside] = 1, count
                targets["sampler"][inside] = response.logprobs
                if group.advantages is not None:
                    targets["advantages"][inside] = group.advantages[r]
                t, u, count = here.stop, inside.stop, count + 1
