"""The engine's programs without arrays: what each is called with, as shapes, to be compiled for other machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from vero_jax.config import SamplingConfig
from vero_jax.parallel.mesh import ROW_AXES
from vero_jax.sampling.engine import Engine, SessionPrograms
from vero_jax.sampling.inputs import pad_prompts, token_inputs, vision_inputs
from vero_jax.sampling.programs import PromptRows
from vero_jax.sampling.schedule import Scheduler
from vero_jax.sampling.session import host_assignment


@dataclasses.dataclass(frozen=True)
class Call:
    """One program and shapes to lower it for: `call.function.lower(*call.arguments)`.

    Attributes:
      name: what it does, with its size.
      tokens, patches: that one call reads, over all devices, padding included; a step's new tokens for decoding.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    tokens: int
    patches: int = 0


@dataclasses.dataclass(frozen=True)
class AbstractSession:
    """What a session with some settings holds, and calls at its largest.

    Attributes:
      params: the weights as sampling reads them.
      reshard: the program that makes them; None where training's own are used.
      stores: what it holds of keys and values, by name.
      calls: its programs at their largest sizes.
    """

    params: Any
    reshard: Call | None
    stores: dict[str, Any]
    calls: tuple[Call, ...]


def abstract_session(
    engine: Engine, params: Any, *, n: int, max_new_tokens: int, sampling: SamplingConfig
) -> AbstractSession:
    """As `Engine.session`.

    Args:
      params: the training state's parameters, as `jax.ShapeDtypeStruct`s with shardings.
    """
    reshard = None
    if engine._for_sampling is not None:
        reshard = Call("reshard", engine._for_sampling, (params,), 0)
        placed = engine._sampling_shardings() if engine.gathers_weights else jax.tree.map(lambda x: x.sharding, params)
        shapes = jax.eval_shape(engine._programs.for_sampling, params)
        params = jax.tree.map(_placed, shapes, placed)
    sizes = dataclasses.replace(
        engine.sizes(n, max_new_tokens), truncated=sampling.truncates, penalties=sampling.has_penalties
    )
    programs, layout = SessionPrograms(engine._programs, engine.layout, sizes, engine.guard), engine.layout
    prompts, pages = jax.tree.map(_placed, jax.eval_shape(programs.empty), (layout.prompts(sizes), layout.pages()))
    lanes = jax.tree.map(_placed, jax.eval_shape(lambda: programs.new_lanes(sizes.lanes)), layout.lanes(sizes))
    scheduler = Scheduler(sizes)
    scheduler.resize(sizes.lanes)
    assignment = jax.tree.map(_placed, host_assignment(scheduler), layout.assignment())
    number = jax.ShapeDtypeStruct((), jnp.int32)
    calls = [
        *_reading(engine, programs, params, prompts),
        Call(
            f"decode, {sizes.lanes * sizes.shards} answers",
            programs.decode,
            (params, prompts, pages, lanes, assignment, number, number, number),
            sizes.lanes * sizes.shards,
        ),
    ]
    stores = {"keys of prompts": prompts, "keys of answers": (pages, lanes)}
    return AbstractSession(params, reshard, stores, tuple(calls))


def _reading(engine: Engine, programs: SessionPrograms, params: Any, prompts: Any) -> Iterator[Call]:
    """Reading prompts of the largest bucket that is read at once, and of the largest that is read in chunks."""
    buckets, chunk, sizes = engine.buckets, engine.rollout.prefill_chunk, programs.sizes
    whole = [tokens for tokens in buckets.prompts if tokens <= chunk]
    # The most tokens and, of equal ones, the most patches to one call.
    if whole:
        tokens = max(whole, key=lambda size: (max(engine.prefill_rungs(size, sizes.prompts)) * size, size))
        images, text, rows, patches = _inputs(engine, sizes, tokens, tokens)
        count = text.token_ids.shape[0]
        yield Call(f"prefill, {count} x {tokens} tokens, {count} x {patches} patches", programs.prefill,
                   (params, images, text, rows, prompts), count * tokens, count * patches)  # fmt: skip
    tokens = buckets.prompts[-1]
    if tokens <= chunk:
        return
    length = -(-tokens // chunk) * chunk
    images, text, rows, patches = _inputs(engine, sizes, tokens, length)
    count = text.token_ids.shape[0]
    features = None
    if images is not None:
        yield Call(f"encode, {count} x {patches} patches", engine._encode, (params, images), 0, count * patches)
        shapes = jax.eval_shape(engine._programs.encode, params, images)
        by_layer = NamedSharding(engine.mesh, PartitionSpec(None, ROW_AXES))
        features = type(shapes)(_placed(shapes.embeds, engine.layout.rows), _placed(shapes.deepstack, by_layer))
    shapes = jax.eval_shape(lambda: engine._empty_reading(count, length))
    cache, by_row = engine.layout.cache(), engine.layout.rows
    reading = type(shapes)(_placed(shapes.k, cache), _placed(shapes.v, cache), _placed(shapes.final, by_row))
    offset = jax.ShapeDtypeStruct((), jnp.int32)
    yield Call(f"read chunk, {count} x {chunk} of {length} tokens", engine._read_chunk,
               (params, features, text, rows.lengths, reading, offset), count * chunk)  # fmt: skip
    yield Call("store", programs.store, (prompts, reading, text.token_ids, rows), 0)


def _inputs(engine: Engine, sizes: Any, tokens: int, length: int) -> tuple[Any, Any, Any, int]:
    """Vision, tokens and places of the most prompts of a bucket that are read together, and the patches of each."""
    count = max(engine.prefill_rungs(tokens, sizes.prompts))
    vision = engine.model_def.config.vision
    most = tokens * engine.patch_layout.patches_per_token
    patches = 0 if vision is None else max([size for size in engine.buckets.patches if size <= most], default=0)
    if vision is not None and patches < most:  # a bucket that the largest images of such prompts need
        patches = min([size for size in engine.buckets.patches if size >= most], default=engine.buckets.patches[-1])
    padded = pad_prompts([None], length, patches, engine.patch_layout, vision.patch_elements if vision else 0)

    def of_rows(x: Any) -> Any:
        return jax.ShapeDtypeStruct((sizes.shards * count, *x.shape[1:]), x.dtype, sharding=engine.layout.rows)

    images, text, lengths, positions = jax.tree.map(
        of_rows, (vision_inputs(padded), token_inputs(padded), padded.lengths, padded.next_positions)
    )
    per_prompt = -(-tokens // sizes.prompt_page)

    def table(width: int) -> Any:
        return jax.ShapeDtypeStruct((sizes.shards, width), jnp.int32, sharding=engine.layout.rows)

    return images, text, PromptRows(lengths, positions, table(count), table(count * per_prompt)), patches


def _placed(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
