"""`python -m vero_jax.train`, with advantages of inf: BAD=2:0 spoils question 0 of step 2, BAD=* all of all steps."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from typing import Any

import numpy as np

from vero_jax import train

if __name__ == "__main__":
    real, steps = train.add_advantages, itertools.count(1)
    bad, _, question = os.environ["BAD"].partition(":")

    def add_advantages(*args: Any, **kwargs: Any) -> list:
        groups, step = real(*args, **kwargs), next(steps)
        for number, group in enumerate(groups):
            if bad == "*" or (int(bad) == step and int(question) == number):
                spoiled = np.full(len(group.responses), np.inf, np.float32)
                groups[number] = dataclasses.replace(group, advantages=spoiled)
        return groups

    train.add_advantages = add_advantages
    sys.exit(train.main())
