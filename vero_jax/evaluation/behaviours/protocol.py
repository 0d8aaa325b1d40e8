"""How the Vero paper (arXiv 2604.04917v3, appendix D.2) judges behaviours, and what an analysis does otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vero_jax.config import JudgeConfig
from vero_jax.evaluation.behaviours.traces import Input

JUDGE = "Qwen3-32B"
TEMPERATURE = 0.0
MAX_TOKENS = 2048
SEED = 42
"""Of the judge's requests in the paper; ours, too, of the choice of answers."""
MAX_TRACE = 100_000
"""Characters of a trace that the judge sees. The paper's traces, of at most 16,384 tokens, are shown whole."""


def deviations(
    inputs: Sequence[Input], config: JudgeConfig, model: str, fewer: bool, shortened: int, trace_characters: int
) -> list[str]:
    """What differs from the paper's protocol, each in a few words; empty where nothing that can be told does.

    Args:
      config: of the judge's server.
      model: its name there.
      fewer: some domain has fewer judged answers than the paper's choice would give.
      shortened: answers whose middle the judge did not see.
      trace_characters: that it sees of an answer.
    """
    found: list[str] = []
    if not re.search(rf"(?<![\w.-]){re.escape(JUDGE)}(?![\w.])", model, re.IGNORECASE):
        found.append(f"the judge is {model}, not {JUDGE}")
    if config.temperature != TEMPERATURE:
        found.append(f"temperature {config.temperature:g}, not {TEMPERATURE:g}")
    if config.max_tokens != MAX_TOKENS:
        found.append(f"{config.max_tokens:,} new tokens of the judge, not {MAX_TOKENS:,}")
    if fewer:
        found.append("--per-domain leaves answers out")
    if shortened:
        found.append(f"of {shortened:,} answers the judge sees {trace_characters:,} characters, not all")
    runs = sorted(one.trained_on for one in inputs if one.kind == "run")
    if runs:
        found.append(f"questions of a run's validation, not benchmarks ({', '.join(runs)})")
    return found
