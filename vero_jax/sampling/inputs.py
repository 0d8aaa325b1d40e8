"""From prompts to the padded arrays of one sampling call, and the random key of every sample. numpy only.

Axes: G groups of a call, N samples per group, S prompt tokens (a bucket), P vision patches (a bucket), E elements of a
patch.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Num, UInt32

from vero_jax.data.geometry import merged_counts
from vero_jax.data.patches import WITHOUT_WINDOWS, PatchLayout
from vero_jax.errors import UserError
from vero_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class Call:
    """What is prefilled and decoded together. Groups past the prompts are padding of one token."""

    indices: tuple[int, ...]
    """Places of the call's prompts in the list they came from."""
    token_ids: Int32[np.ndarray, "G S"]
    positions: Int32[np.ndarray, "G S 3"]
    image_index: Int32[np.ndarray, "G S"]
    lengths: Int32[np.ndarray, "G"]
    next_positions: Int32[np.ndarray, "G"]
    keys: UInt32[np.ndarray, "G N 2"]
    patches: Num[np.ndarray, "G P E"] | None
    """In the order of the vision tower; None, as are the next four, when no prompt of the call has an image."""
    coords: Int32[np.ndarray, "G P 2"] | None
    sizes: Int32[np.ndarray, "G P 2"] | None
    segments: Int32[np.ndarray, "G P"] | None
    windows: Int32[np.ndarray, "G P"] | None
    """None, too, for a tower without windows."""


def plan_calls(
    prompts: Sequence[Prompt],
    keys: UInt32[np.ndarray, "Q N 2"],
    *,
    groups: int,
    prompt_buckets: Sequence[int],
    patch_buckets: Sequence[int],
    patch_layout: PatchLayout = WITHOUT_WINDOWS,
) -> Iterator[Call]:
    """Sorts prompts by bucket and cuts them into calls of `groups`, so that a call pads little.

    Everything is checked now; the arrays of a call are made when its turn comes.

    Args:
      keys: one key per prompt and sample, see `sample_keys`.
      groups: groups of every call, padding included.
      prompt_buckets, patch_buckets: padded sizes, in tokens and patches.
      patch_layout: of the model's vision tower.

    Raises:
      UserError: a prompt does not fit the buckets, or its image tokens do not match its images.
    """
    sizes = []
    for index, prompt in enumerate(prompts):
        _check_images(index, prompt, patch_layout.merge_size)
        tokens = _bucket(len(prompt.token_ids), prompt_buckets, index, prompt, "tokens", "rollout.prompt_buckets")
        patches = 0
        if len(prompt.patches):
            patches = _bucket(len(prompt.patches), patch_buckets, index, prompt, "patches", "rollout.patch_buckets")
        sizes.append((tokens, patches))
    order = sorted(range(len(prompts)), key=lambda index: (sizes[index], index))

    def call(indices: tuple[int, ...]) -> Call:
        length = max(sizes[index][0] for index in indices)
        room = max(sizes[index][1] for index in indices)
        return _pad([prompts[index] for index in indices], indices, keys, groups, length, room, patch_layout)

    return (call(tuple(order[first : first + groups])) for first in range(0, len(order), groups))


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


def _check_images(index: int, prompt: Prompt, merge_size: int) -> None:
    """Images must not go missing in silence: patches, grids and image tokens have to agree before anything runs."""
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


def _pad(
    prompts: Sequence[Prompt],
    indices: tuple[int, ...],
    keys: UInt32[np.ndarray, "Q N 2"],
    groups: int,
    length: int,
    room: int,
    patch_layout: PatchLayout,
) -> Call:
    token_ids = np.zeros((groups, length), np.int32)
    positions = np.zeros((groups, length, 3), np.int32)
    image_index = np.full((groups, length), -1, np.int32)
    lengths = np.ones(groups, np.int32)
    next_positions = np.ones(groups, np.int32)
    call_keys = np.zeros((groups, *keys.shape[1:]), np.uint32)
    call_keys[: len(indices)] = keys[list(indices)]
    patches = coords = sizes = segments = windows = None
    if room:
        first = next(prompt.patches for prompt in prompts if len(prompt.patches))
        patches = np.zeros((groups, room, first.shape[1]), first.dtype)
        coords = np.zeros((groups, room, 2), np.int32)
        sizes = np.ones((groups, room, 2), np.int32)
        segments = np.zeros((groups, room), np.int32)
        windows = np.zeros((groups, room), np.int32) if patch_layout.window else None
    for row, prompt in enumerate(prompts):
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
    return Call(
        indices=indices,
        token_ids=token_ids,
        positions=positions,
        image_index=image_index,
        lengths=lengths,
        next_positions=next_positions,
        keys=call_keys,
        patches=patches,
        coords=coords,
        sizes=sizes,
        segments=segments,
        windows=windows,
    )
