"""All 34 behaviours in the order of tables: the 28 of text, then the 6 visual ones."""

from __future__ import annotations

from vero_jax.evaluation.behaviours.behaviour import Behaviour
from vero_jax.evaluation.behaviours.text import TEXT
from vero_jax.evaluation.behaviours.visual import VISUAL_BEHAVIOURS

BEHAVIOURS: tuple[Behaviour, ...] = (*TEXT, *VISUAL_BEHAVIOURS)
