"""Reading the golden reward cases, from the shared folder or from the copies, whatever files lie there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from tests.conftest import golden_dir

MUST_MATCH = frozenset({None, "Q-SIGN", "Q-MC", "Q-MCGT", "Q-DASH", "Q-GETATTR", "Q-OVERLONG", "Q-JUDGEFMT"})
"""Labels of cases that are the rule, or defects that are kept; the others may be done better."""

TOLERANCE = 1e-6
KINDS = ("rewards", "judge", "manager")


def cases(kind: str) -> list[dict[str, Any]]:
    """All cases of golden_<kind>*.jsonl, packed or not."""
    found = read_cases(golden_dir("rewards"), kind)
    assert found, f"no golden cases of kind {kind}"
    return found


def read_cases(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The cases of one kind in a folder, in the order of its files."""
    found = []
    for file in sorted(folder.glob(f"golden_{kind}*.jsonl*")):
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines if line.strip()]
    return found
