"""The user's own scorer: a function in a file, named by `reward.custom` or `reward.custom_types`."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError


def split_target(target: str) -> tuple[Path, str]:
    """("path/to/file.py", "function") of "path/to/file.py:function". Raises UserError for anything else."""
    path, _, name = target.rpartition(":")
    if not path or not name.isidentifier():
        raise UserError(f"reward.custom is {target!r}: write it as path/to/file.py:function")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"reward.custom names {file}, which is no file: check the path before the colon in {target!r}")
    return file, name


@functools.cache
def load_function(target: str) -> Callable[..., Any]:
    """The function that "path/to/file.py:function" names. Raises UserError if it can't be loaded."""
    file, name = split_target(target)
    module_name = f"vero_jax_custom_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"reward.custom names {file}, which is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    # The file may import its neighbours.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"reward.custom: {file} fails on import with {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"reward.custom: {file} has no function {name!r}")
    return function


def custom_score(
    target: str, text: str, ground_truth: Any, extra_info: Mapping[str, Any], form: float
) -> tuple[float, float]:
    """(accuracy, format) by the user's function, which returns a number or {"accuracy": ..., "format": ...}.

    Raises TypeError or ValueError where it returns something else, and whatever the function itself raises.
    """
    result = load_function(target)(text, ground_truth, dict(extra_info))
    if isinstance(result, Mapping):
        accuracy, form = float(result["accuracy"]), float(result.get("format", form))
    else:
        accuracy = float(result)
    if not (math.isfinite(accuracy) and math.isfinite(form)):
        raise ValueError(f"{target} returned {result!r}, which is not finite")
    return accuracy, form
