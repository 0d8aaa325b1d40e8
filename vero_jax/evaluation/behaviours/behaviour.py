"""The type of a behaviour, and the groups in which the behaviours come."""

from __future__ import annotations

import dataclasses

INVARIANT = "reasoning invariants"
CONTROL = "meta-cognitive controls"
REPRESENTATION = "reasoning representations"
OPERATION = "reasoning operations"
VISUAL = "visual behaviours"
GROUPS = (INVARIANT, CONTROL, REPRESENTATION, OPERATION, VISUAL)


@dataclasses.dataclass(frozen=True)
class Example:
    """A piece of a trace, whether it shows the behaviour, and why."""

    trace: str
    present: bool
    why: str


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """One yes-or-no question about a whole trace."""

    name: str
    """As in the papers, in files and tables; `catalogue.LABELS` has its label in pictures."""
    group: str
    definition: str
    criteria: tuple[str, ...]
    """Each says what counts; one of them is enough."""
    not_enough: str
    """What may look like it and does not count."""
    examples: tuple[Example, ...]
