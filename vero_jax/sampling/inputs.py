"""From prompts to the padded arrays of a prefill, and the random key of every sample, on the host (numpy).

Axes: G rows of a prefill, N samples per group, S prompt tokens (a bucket), P vision patches (a bucket), E elements of a
patch.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Num, UInt32

from vero_jax.data.geometry import merged_counts
from vero_jax.data.patches import WITHOUT_WINDOWS, PatchLayout
from vero_jax.errors import UserError
from vero_jax.models.inputs import TokenInputs, VisionInputs
from vero_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class PaddedPrompts:
    """What is read together, one prompt per row. Rows of padding hold one token."""

    token_ids: Int32[np.ndarray, "G S"]
    positions: Int32[np.ndarray, "G S 3"]
    image_index: Int32[np.ndarray, "G S"]
    lengths: Int32[np.ndarray, "G"]
    next_positions: Int32[np.ndarray, "G"]
    patches: Num[np.ndarray, "G P E"] | None
    """In the order of the vision tower; None, as are the next four, when no prompt has an image."""
    coords: Int32[np.ndarray, "G P 2"] | None
    sizes: Int32[np.ndarray, "G P 2"] | None
    segments: Int32[np.ndarray, "G P"] | None
    windows: Int32[np.ndarray, "G P"] | None
    """None, too, for a tower without windows."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Padded sizes of prompts (tokens) and of their images (patches), each ascending."""

    prompts: tuple[int, ...]
    patches: tuple[int, ...]

    def of(self, index: int, prompt: Prompt) -> tuple[int, int]:
        """The smallest that hold a prompt; 0 patches for one without images.

        Raises:
          UserError: there is none; the sentence names prompt `index`.
        """
        tokens = _bucket(len(prompt.token_ids), self.prompts, index, prompt, "tokens", "rollout.prompt_buckets")
        if not len(prompt.patches):
            return tokens, 0
        return tokens, _bucket(len(prompt.patches), self.patches, index, prompt, "patches", "rollout.patch_buckets")


def fitting(
    prompts: Sequence[Prompt], buckets: Buckets, merge_size: int
) -> tuple[list[Prompt], collections.Counter[str]]:
    """The prompts that the engine can read, in their order, and how many it cannot by reason.

    Args:
      merge_size: of the model's vision tower.
    """
    kept, left_out = [], collections.Counter[str]()
    for index, prompt in enumerate(prompts):
        try:
            check_prompt(index, prompt, merge_size)
        except UserError:
            left_out["images"] += 1
            continue
        if len(prompt.token_ids) > buckets.prompts[-1]:
            left_out["tokens"] += 1
        elif len(prompt.patches) > buckets.patches[-1]:
            left_out["patches"] += 1
        else:
            kept.append(prompt)
    return kept, left_out


def sample_keys(prompts: Sequence[Prompt], n: int, seed: int, step: int) -> UInt32[np.ndarray, "Q N 2"]:
    """A key for each sample: a hash of (seed, step, the prompt's id, how often that id came before, the sample).

    It does not depend on the other prompts of the list, on their order, or on where anything is computed.
    """
    keys = np.zeros((len(prompts), n, 2), np.uint32)
    seen: collections.Counter[str] = collections.Counter()
    for index, prompt in enumerate(prompts):
        name = prompt.example.id
        for sample in range(n):
            text = f"{seed}/{step}/{seen[name]}/{sample}/{name}"
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            keys[index, sample] = np.frombuffer(digest, "<u4")
        seen[name] += 1
    return keys


def check_prompt(index: int, prompt: Prompt, merge_size: int) -> None:
    """Images must not go missing in silence: patches, grids and image tokens have to agree before anything runs.

    Raises:
      UserError: they do not, or the prompt is empty.
    """
    if not len(prompt.token_ids):
        raise UserError(f"{_name(index, prompt)} has no tokens; the chat template must give at least one")
    grids = np.asarray(prompt.grids).reshape(-1, 3)
    patches = int(grids.prod(axis=1).sum())
    if patches != len(prompt.patches):
        raise UserError(
            f"{_name(index, prompt)} has {len(prompt.patches)} patches, but its grids {grids.tolist()} make {patches}; "
            "the images were not processed as its tokens say"
        )
    merged = int(merged_counts(grids, merge_size).sum())
    visual = prompt.image_index[prompt.image_index >= 0]
    if len(visual) != merged or not np.array_equal(visual, np.arange(merged)):
        raise UserError(
            f"{_name(index, prompt)} has {len(visual)} image tokens, but its grids {grids.tolist()} need {merged}, in "
            "order; the prompt was cut or its placeholders were changed after processing"
        )


def pad_prompts(
    prompts: Sequence[Prompt | None],
    length: int,
    room: int,
    patch_layout: PatchLayout = WITHOUT_WINDOWS,
    patch_elements: int = 0,
) -> PaddedPrompts:
    """Prompts as rows of `length` tokens and `room` patches; None is a row of padding.

    Args:
      patch_elements: E, for rows of padding only.
    """
    G = len(prompts)
    token_ids = np.zeros((G, length), np.int32)
    positions = np.zeros((G, length, 3), np.int32)
    image_index = np.full((G, length), -1, np.int32)
    lengths = np.ones(G, np.int32)
    next_positions = np.ones(G, np.int32)
    patches = coords = sizes = segments = windows = None
    if room:
        like = next((prompt.patches for prompt in prompts if prompt is not None and len(prompt.patches)), None)
        elements, dtype = (patch_elements, np.dtype(np.uint8)) if like is None else (like.shape[1], like.dtype)
        patches = np.zeros((G, room, elements), dtype)
        coords = np.zeros((G, room, 2), np.int32)
        sizes = np.ones((G, room, 2), np.int32)
        segments = np.zeros((G, room), np.int32)
        windows = np.zeros((G, room), np.int32) if patch_layout.window else None
    for row, prompt in enumerate(prompts):
        if prompt is None:
            continue
        T, P = len(prompt.token_ids), len(prompt.patches)
        token_ids[row, :T] = prompt.token_ids
        positions[row, :T] = prompt.positions
        lengths[row] = T
        next_positions[row] = prompt.next_position
        if P and patches is not None and coords is not None and sizes is not None and segments is not None:
            arranged = patch_layout.arrange(prompt.grids)
            patches[row, :P] = prompt.patches[arranged.order]
            coords[row, :P], sizes[row, :P], segments[row, :P] = arranged.coords, arranged.sizes, arranged.segments
            if windows is not None and arranged.windows is not None:
                windows[row, :P] = arranged.windows
            seen = np.flatnonzero(prompt.image_index >= 0)
            image_index[row, seen] = arranged.places[prompt.image_index[seen]]
    return PaddedPrompts(
        token_ids, positions, image_index, lengths, next_positions, patches, coords, sizes, segments, windows
    )


def token_inputs(padded: PaddedPrompts) -> TokenInputs:
    """Prompts as rows of one group each."""
    S = padded.token_ids.shape[1]
    groups = (np.arange(S) < padded.lengths[:, None]).astype(np.int32)
    branches = np.zeros_like(groups)
    return TokenInputs(padded.token_ids, padded.positions, padded.image_index, groups, branches)  # type: ignore[arg-type]


def vision_inputs(padded: PaddedPrompts) -> VisionInputs | None:
    """The images of the rows; None where there are none."""
    if padded.patches is None:
        return None
    return VisionInputs(padded.patches, padded.coords, padded.sizes, padded.segments, padded.windows)  # type: ignore[arg-type]


def _name(index: int, prompt: Prompt) -> str:
    return f"prompt {index} (example {prompt.example.id!r})"


def _bucket(size: int, buckets: Sequence[int], index: int, prompt: Prompt, unit: str, setting: str) -> int:
    for bucket in sorted(buckets):
        if size <= bucket:
            return bucket
    raise UserError(
        f"{_name(index, prompt)} has {size} {unit}, more than the largest of {setting} {list(buckets)}; "
        "add a larger bucket, or allow only smaller images or shorter prompts"
    )
