"""Curation: from raw question sets to rows worth training on. Nothing in this room imports jax.

`python -m vero_jax.curation --help` lists the commands in the order of the paper's pipeline.
"""
