"""Small sources of rows with pictures, and a model's server that answers questions about them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.rewards.judge_endpoint import Act, Handler, text
from vero_jax.curation.verdicts import FLAGS


def picture(size: tuple[int, int] = (40, 30), mode: str = "RGB", kind: str = "PNG", colour: Any = None) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour or 0).save(buffer, kind)
    return buffer.getvalue()


def row(
    number: int = 0,
    *,
    question: str = "What is it?",
    truth: str = "cat",
    source: str = "pets",
    domain: str = "chart_ocr",
    reward_type: str = "string_match",
    size: tuple[int, int] = (40, 30),
    **extra: Any,
) -> dict[str, Any]:
    """One row of a JSONL file; `write` makes its picture. Each has a picture of its own colour."""
    return {
        "id": f"{source}_{number}",
        "data_source": source,
        "prompt": [{"role": "user", "content": f"<image>\n{question}"}],
        "images": [f"pictures/{source}_{number}.png"],
        "ability": domain,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"question": question, "answer": truth, "reward_type": reward_type, "tolerance": None, **extra},
        "_size": size,
        "_colour": number % 256,
    }


def write(folder: Path, rows: Sequence[dict[str, Any]], name: str = "train.jsonl") -> Path:
    """A JSONL file with its pictures beside it."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for entry in rows:
        entry = dict(entry)
        size, colour = entry.pop("_size", (40, 30)), entry.pop("_colour", 0)
        for path in entry["images"]:
            if not (folder / path).exists():
                (folder / path).write_bytes(picture(size, colour=(colour, 80, 120)))
        lines.append(json.dumps(entry))
    file = folder / name
    file.write_text("\n".join(lines) + "\n")
    return file


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def text_of(body: dict[str, Any]) -> str:
    """The text of a request's only turn."""
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def question_of(body: dict[str, Any]) -> str:
    found = re.search(r"QUESTION BEGINS ===\n(.*?)\n=== \w+ QUESTION ENDS", text_of(body), re.DOTALL)
    assert found
    return found[1]


def answers(reply: Callable[[str], Any]) -> Act:
    """Every request gets the reply to its question; a reply that is an act is carried out."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        found = reply(question_of(body))
        (found if callable(found) else text(found))(handler, body)

    return act


def verdict(*raised: str, **more: Any) -> str:
    """A whole verdict with these flags raised."""
    return json.dumps({"findings": "seen", **{name: name in raised for name in FLAGS}, **more})
