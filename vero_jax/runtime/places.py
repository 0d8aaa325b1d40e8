"""Where a run's checkpoints lie: in its folder, in another one, or in a bucket; and which of them scored best.

    <place>/40/  <place>/80/  <place>/scores.json

In: `trainer.checkpoint_dir`. Out: a path of `etils.epath`, which has the methods of `pathlib` for gs:// too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from vero_jax.config import Config
from vero_jax.errors import UserError
from vero_jax.runtime.files import atomic_write

_SCORES = "scores.json"


def fill_in(setting: str, value: str, config: Config) -> str:
    """`value` with {name} and {seed} filled in.

    Raises:
      UserError: it holds other braces; `setting` names it.
    """
    try:
        return value.format(name=config.name, seed=config.seed)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{setting} {value!r} can hold {{name}} and {{seed}}, and nothing else in braces ({error})."
        ) from error


def checkpoint_place(config: Config, run: Path) -> epath.Path:
    """The folder or gs:// address of the checkpoints of the run in a folder.

    Raises:
      UserError: the address is of a kind that is not supported, or what reads it is not installed.
    """
    wanted = fill_in("trainer.checkpoint_dir", config.trainer.checkpoint_dir, config)
    if not wanted:
        return epath.Path(run / "checkpoints")
    scheme, found, _ = wanted.partition("://")
    if not found:
        return epath.Path(Path(wanted).expanduser().absolute())
    if scheme != "gs":
        raise UserError(f"trainer.checkpoint_dir can be a folder or gs://bucket/path, not {wanted!r}")
    try:
        place = epath.Path(wanted)
        place.exists()  # asks the bucket, with what this machine has of credentials
    except ImportError as error:
        raise UserError(
            f"trainer.checkpoint_dir={wanted} needs a client for buckets: pip install 'vero-jax[gcs]' ({error})"
        ) from error
    except Exception as error:  # whatever clients of buckets raise without a network, credentials or rights
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise UserError(f"trainer.checkpoint_dir={wanted} cannot be read ({reason})") from error
    return place


def is_bucket(place: epath.Path) -> bool:
    return "://" in str(place)


def saved_steps(place: epath.PathLike) -> list[int]:
    """The finished checkpoints, oldest first. Unfinished ones have no plain number as name or, in a bucket, no mark."""
    place = epath.Path(place)
    if not place.is_dir():
        return []
    folders = [child for child in place.iterdir() if child.name.strip("/").isdigit() and child.is_dir()]
    if is_bucket(place):
        folders = [folder for folder in folders if (folder / "commit_success.txt").exists()]
    return sorted(int(folder.name.strip("/")) for folder in folders)


def read_scores(place: epath.Path) -> dict[int, float]:
    """{step: accuracy in the validation of these very weights}, of those that were measured."""
    try:
        return {int(step): float(score) for step, score in json.loads((place / _SCORES).read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        warnings.warn(
            f"{place / _SCORES} cannot be read ({error}): which checkpoints were best is not known.", stacklevel=2
        )
        return {}


def write_scores(place: epath.Path, scores: Mapping[int, float]) -> None:
    """Replaces the file in one move where the place can do that (a bucket's objects are whole at any time)."""
    content = json.dumps({str(step): scores[step] for step in sorted(scores)}, indent=1)
    if is_bucket(place):
        (place / _SCORES).write_text(content)
        return
    atomic_write(Path(place) / _SCORES, content)


def ranked(steps: list[int], scores: Mapping[int, float]) -> list[int]:
    """Those of `steps` that have a score, the best first; of equal ones the older first."""
    return sorted((step for step in steps if step in scores), key=lambda step: (-scores[step], step))
