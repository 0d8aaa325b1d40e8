"""`vero_mini`: a small built-in set in Vero-600K's row format, drawn on the spot: six domains, all reward types."""

from vero_jax.data.mini.rows import PREFIXES, SOURCES, config_name, generate_rows, make_row, sizes, text_corpus

__all__ = ["PREFIXES", "SOURCES", "config_name", "generate_rows", "make_row", "sizes", "text_corpus"]
