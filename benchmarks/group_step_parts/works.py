"""What is measured, on both sides: sizes of the policy and of the work, and pictures. Needs neither jax nor torch."""

from __future__ import annotations

import dataclasses
from typing import Any

POLICY = {
    "vocab": 8192, "hidden": 256, "ffn": 768, "layers": 4, "heads": 8, "kv_heads": 4, "head_dim": 32,
    "mrope": (8, 4, 4), "vision_hidden": 128, "vision_ffn": 384, "vision_depth": 4, "vision_heads": 4,
    "deepstack": (1, 2, 3), "vision_positions": 2304,
}  # fmt: skip
TOY = {
    "vocab": 512, "hidden": 64, "ffn": 128, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16,
    "mrope": (4, 2, 2), "vision_hidden": 32, "vision_ffn": 64, "vision_depth": 2, "vision_heads": 2,
    "deepstack": (0, 1), "vision_positions": 256,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
    """One line of the table."""

    kind: str
    """Which measurement: "step", "sampling", or one that has no peer."""
    peer: str | None
    prompts: int = 4
    samples: int = 8
    new_tokens: int = 64
    image: int = 224
    prompt_tokens: int = 102
    updates: int = 1
    """Passes over a rollout; from the second on, the old log-probabilities differ from the current ones."""
    attention_block: int = 128
    """Of our learner's rows: tokens whose scores exist at a time."""
    repeats: int = 5
    peer_repeats: int = 5

    def toy(self) -> Work:
        """The same at a size that a test can wait for."""
        small = {
            "prompts": 2,
            "samples": 2,
            "new_tokens": 4,
            "image": 64,
            "prompt_tokens": 24,
            "repeats": 1,
            "attention_block": 16,
        }
        return dataclasses.replace(self, **small, peer_repeats=1)


WORKS: dict[str, Work] = {
    "step_64": Work("step", "TRL GRPOTrainer"),
    "step_64_two_updates": Work("step", "TRL GRPOTrainer", updates=2, repeats=4, peer_repeats=3),
    "step_896px": Work(
        "step",
        "TRL GRPOTrainer",
        image=896,
        prompt_tokens=837,
        new_tokens=32,
        attention_block=256,
        repeats=3,
        peer_repeats=2,
    ),
    "sampling_64": Work("sampling", "Hugging Face generate"),
    "useful_share": Work("useful_share", None, prompts=64, new_tokens=256),
    "compilations": Work("compilations", None, new_tokens=48),
    "mismatch_float32": Work("mismatch", None),
    "mismatch_bfloat16": Work("mismatch", None),
    "update_memory": Work("update_memory", None),
}


def picture(side: int, number: int) -> Any:
    """A light square with a few dark ones, as a Pillow image."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side), (238, 238, 235))
    draw = ImageDraw.Draw(image)
    for dot in range(number % 5 + 1):
        left, top = (37 * dot + 11 * number) % max(side - 24, 1), (53 * dot + 29 * number) % max(side - 24, 1)
        draw.rectangle((left, top, left + 20, top + 20), fill=(180, 40, 40))
    return image


def reward(tokens: list[int]) -> float:
    """Cheap and different for nearly every answer, so that advantages are not zero: the same on both sides."""
    return (sum(tokens) % 97) / 96
