"""The user's own scorer of one reward type: a function named by `reward.custom` or `reward.custom_types`.

`load_function` finds the functions of all settings that name one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from vero_jax.errors import UserError


def split_target(target: str, setting: str = "reward.custom") -> tuple[str, str]:
    """(file or module, function) of "path/to/file.py:function" or "package.module:function".

    Raises UserError for anything else, and for a file that does not exist; a module is looked for when it is loaded.
    """
    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(f"{setting} is {target!r}: write it as path/to/file.py:function or package.module:function")
    if _is_module(place):
        return place, name
    file = Path(place).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"{setting} names {file}, which is no file: check the path before the colon in {target!r}")
    return str(file), name


@functools.cache
def load_function(target: str, setting: str = "reward.custom") -> Callable[..., Any]:
    """The function that "path/to/file.py:function" or "package.module:function" names.

    Raises UserError if it can't be loaded; `setting` is the key that the message names.
    """
    place, name = split_target(target, setting)
    try:
        module = _import_module(place) if _is_module(place) else _import_file(Path(place), setting)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{setting}: {place} fails on import with {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = f"; it has {', '.join(known[:8])}" if known else ""
        raise UserError(f"{setting}: {place} has no function {name!r}{hint}")
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


def _is_module(place: str) -> bool:
    return not place.endswith(".py") and all(part.isidentifier() for part in place.split("."))


def _import_module(name: str) -> ModuleType:
    # Workers start without the working directory on their path; a package that lies there is meant as well.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def _import_file(file: Path, setting: str) -> ModuleType:
    module_name = f"vero_jax_custom_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{setting} names {file}, which is no Python file: give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    # The file may import its neighbours.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec.loader.exec_module(module)
    return module
