"""Groups as the sampler and the rewards would leave them, for the tests of what is written about them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from vero_jax.types import DOMAINS, Example, Group, Prompt, Response, Score


def picture(size: tuple[int, int] = (96, 64), color: str = "steelblue", mode: str = "RGB", kind: str = "PNG") -> bytes:
    image = Image.new(mode, size, "white" if mode == "RGB" else (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((size[0] // 4, size[1] // 4, size[0] // 2, size[1] - 8), fill=color)
    draw.ellipse((size[0] // 2, 8, size[0] - 8, size[1] // 2), fill="tomato")
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def make_group(
    domain: str = "stem",
    *,
    question: str = "<image>How many shapes are there?",
    images: tuple[bytes, ...] | None = None,
    answers: tuple[str, ...] = ("<think>\n  one  blue,\n  one red\n</think>\n<answer>2</answer>", "three"),
    totals: tuple[float, ...] = (1.0, 0.0),
    missing: str | None = None,
    scored: bool = True,
    number: int = 0,
) -> Group:
    images = (picture(),) if images is None else images
    example = Example(
        id=f"{domain}-{number}",
        domain=domain,
        source="shapes",
        messages=({"role": "user", "content": question},),
        images=images,
        reward_type="numeric",
        ground_truth="2",
        extra_info={},
    )
    tokens = np.arange(40, dtype=np.int32)
    prompt = Prompt(
        example=example,
        token_ids=tokens,
        positions=np.stack([tokens] * 3, 1),
        image_index=np.full(40, -1, np.int32),
        patches=np.zeros((24, 1536), np.uint8),
        grids=np.array([[1, 4, 6]] * len(images), np.int32).reshape(-1, 3),
        image_sizes=((100, 60),) * len(images),
        resized_sizes=((96, 64),) * len(images),
    )
    responses = tuple(
        Response(
            token_ids=np.arange(len(text.split()) + 1, dtype=np.int32),
            logprobs=np.full(len(text.split()) + 1, -0.25, np.float32),
            stop_reason="stop" if total else "length",
            text=text,
        )
        for text, total in zip(answers, totals, strict=True)
    )
    scores = tuple(Score(total=t, accuracy=float(t > 0.5), format=float(t > 0), overlong=0.0) for t in totals)
    if missing is not None:
        scores = (*scores[:-1], Score(np.nan, np.nan, np.nan, np.nan, missing))
    values = np.asarray(totals, np.float32)
    return Group(prompt, responses, scores if scored else (), values - values.mean() if scored else None)


def one_group_per_domain() -> list[Group]:
    groups = []
    for number, domain in enumerate(DOMAINS):
        best = 1.0 - number / 10
        groups.append(make_group(domain, totals=(0.1 * number, best), number=number))
    return groups
