"""Random numbers that belong to one vocabulary entry of one token of one sample, and to nothing else.

A sampler that draws from a shared stream gives a sample other tokens when its batch, its slot or the number of devices
changes. Here every number is a function of (the sample's key, the token's place in the response, the vocabulary entry):
the counter-based generator Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), keyed by the sample, counting (entry, place). It is written out in plain operations so that it fuses with
what uses it and does not depend on the settings or the version of `jax.random`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry_2x32(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two uint32 words for each key and counter; all four arguments broadcast against each other."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))) ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def gumbel(
    keys: UInt32[Array, "n 2"], position: Int32[Array, "n"] | Int32[Array, ""] | int, entries: Int32[Array, "b"]
) -> Float32[Array, "n b"]:
    """Standard Gumbel noise of some vocabulary entries for each sample's next token.

    Args:
      keys: one key per sample.
      position: place of the token in its response.
      entries: vocabulary ids. An entry's noise is the same whichever others it is asked with.
    """
    place = jnp.asarray(position).astype(jnp.uint32)[..., None]
    bits, _ = threefry_2x32((keys[:, 0:1], keys[:, 1:2]), (entries.astype(jnp.uint32)[None], place))
    # -log(-log(1 - w)): small w are the large values, and float32 resolves them down to 2**-33. A token of
    # probability 1e-9 can still be drawn, which 1 - w with its steps of 2**-24 would rule out.
    w = jnp.minimum((bits.astype(jnp.float32) + 0.5) * np.float32(2**-32), np.float32(1 - 2**-24))
    return -jnp.log(-jnp.log1p(-w))
