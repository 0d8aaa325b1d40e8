"""Host values as bytes, for the processes of a run: plain data, numpy arrays and the package's own dataclasses.

JSON with the arrays behind it. Nothing that is read can name code to be run: a class is looked up inside this package
and must be a dataclass, whose fields are set and whose constructor does nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "vero_jax"


def to_bytes(value: Any) -> bytes:
    """A value as bytes; dicts may have any keys that are values themselves.

    Raises:
      TypeError: it holds something else, such as a function. Our own mistake.
    """
    blocks: list[bytes] = []
    head = json.dumps(_encoded(value, blocks)).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(blocks)


def from_bytes(data: bytes) -> Any:
    """The value that `to_bytes` was given; arrays are copies that may be written to."""
    size = int.from_bytes(data[:8], "little")
    return _decoded(json.loads(data[8 : 8 + size]), memoryview(data)[8 + size :])


def _encoded(value: Any, blocks: list[bytes]) -> Any:
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, (bytes, np.ndarray, np.generic)):
        array = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError("an array of objects cannot be passed to another process")
        kind = type(value).__name__ if isinstance(value, bytes) else "scalar" if array.ndim == 0 else "array"
        at = sum(map(len, blocks))
        blocks.append(np.ascontiguousarray(array).tobytes())
        return {"t": kind, "at": at, "dtype": array.dtype.str, "shape": array.shape}
    if isinstance(value, Path):
        return {"t": "path", "v": str(value)}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return {"t": type(value).__name__, "v": [_encoded(item, blocks) for item in value]}
    if isinstance(value, dict):
        return {"t": "dict", "v": [[_encoded(key, blocks), _encoded(item, blocks)] for key, item in value.items()]}
    cls: type[Any] = type(value)
    if dataclasses.is_dataclass(cls) and cls.__module__.split(".")[0] == PACKAGE:
        fields = {field.name: _encoded(getattr(value, field.name), blocks) for field in dataclasses.fields(cls)}
        return {"t": f"{cls.__module__}:{cls.__qualname__}", "v": fields}
    raise TypeError(f"a {cls.__name__} cannot be passed to another process")


def _decoded(tree: Any, data: memoryview) -> Any:
    if not isinstance(tree, dict):
        return tree
    kind: str = tree["t"]
    value: Any = tree.get("v")
    if kind in ("bytes", "array", "scalar"):
        dtype, shape = np.dtype(tree["dtype"]), tuple(tree["shape"])
        array = np.frombuffer(data, dtype, int(np.prod(shape, dtype=np.int64)), tree["at"]).reshape(shape).copy()
        return array.tobytes() if kind == "bytes" else array[()] if kind == "scalar" else array
    if kind == "path":
        return Path(value)
    if kind in ("list", "tuple"):
        items = [_decoded(item, data) for item in value]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {_decoded(key, data): _decoded(item, data) for key, item in value}
    module, _, name = kind.partition(":")
    found: Any = getattr(importlib.import_module(module), name) if module.split(".")[0] == PACKAGE else None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise TypeError(f"{kind} is no dataclass of this package")
    return found(**{field: _decoded(item, data) for field, item in value.items()})
