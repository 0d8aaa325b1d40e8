"""What the linters cannot see: jaxtyping's dimensions look to them like names, so undefined names are not reported."""

from __future__ import annotations

import builtins
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
MODULE = {"__file__", "__name__", "__doc__", "__path__"}


def undefined(source: str, name: str) -> list[str]:
    """Names that code uses and that neither it nor Python has; those in annotations are texts, and no names."""

    def tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
        yield table
        for child in table.get_children():
            yield from tables(child)

    top = symtable.symtable(source, name, "exec")
    defined = {
        symbol.get_name()
        for symbol in top.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }
    known = defined | set(dir(builtins)) | MODULE
    return sorted(
        {
            symbol.get_name()
            for table in tables(top)
            for symbol in table.get_symbols()
            if symbol.is_global() and symbol.is_referenced() and symbol.get_name() not in known
        }
    )


def test_a_name_that_nobody_defines_is_found():
    source = (
        'from __future__ import annotations\nimport os\ndef f(x: Float["N"]) -> B:\n    return os.sep + y + len(x)\n'
    )
    assert undefined(source, "example") == ["y"]


@pytest.mark.parametrize("room", ["vero_jax", "benchmarks", "tests"])
def test_every_name_is_defined(room):
    found = {path.relative_to(REPO): undefined(path.read_text(), str(path)) for path in (REPO / room).rglob("*.py")}
    assert not {path: names for path, names in found.items() if names}
