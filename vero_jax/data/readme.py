"""What the README.md of a hub repository says of its configs."""

from __future__ import annotations

import re
from typing import Any

import yaml


def readme_configs(text: str) -> list[dict[str, Any]]:
    """The entries of `configs:` in the YAML header of a README.md, in its order; none where it can't be read."""
    match = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        header = yaml.safe_load(match.group(1)) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date such as 2024-99-99
        return []
    configs = header.get("configs") if isinstance(header, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []
