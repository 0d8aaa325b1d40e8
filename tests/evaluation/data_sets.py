"""Small data sets of every benchmark in the hub's layout, written where a test wants them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vero_jax.evaluation.benchmark import Benchmark

SIZE = (64, 48)


def picture(size: tuple[int, int] = SIZE, color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def stored(data: bytes | None = None) -> dict[str, Any]:
    """A picture as the hub's Parquet files hold it."""
    return {"bytes": picture() if data is None else data, "path": None}


def text(data: bytes | None = None) -> str:
    return base64.b64encode(picture() if data is None else data).decode()


_CONVERSATION = json.dumps(
    [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe."}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "What colour?"},
        {"role": "assistant", "content": "Black."},
    ]
)
_RULE = {"func": "check_whether_response_word_count_in_range", "params": [1, 5]}
_CONSTRAINTS = json.dumps(
    [
        {"key": "short", "value": "at most five words", "judge": {"method": "rule_based", "verify_funcs": [_RULE]}},
        {"key": "polite", "value": "be polite", "judge": {"method": "direct_gpt"}},
        {"key": "style", "value": "like a pirate", "judge": {"method": "cmp_gpt"}},
    ]
)
_REGION = {"phrase": "the bus", "bbox": [8.0, 8.0, 32.0, 32.0], "realation": "left of the car"}

ROWS: dict[str, list[dict[str, Any]]] = {
    "chartqa": [{"image": stored(), "question": "How many?", "answer": ["14"], "type": "human_test"}],
    "chartqa_pro": [
        {"image": picture(), "Question": ["X?"], "Answer": ["14"], "Question Type": "Factoid", "Year": ["NO"]}
    ],
    "infovqa_val": [{"image": stored(), "question": "How many?", "answers": ["14"], "questionId": "1"}],
    "charxiv": [{"image": stored(), "reasoning_q": "Which?", "reasoning_a": "14", "reasoning_q_source": 4}],
    "chartmuseum": [{"image": stored(), "question": "Which?", "answer": "14", "reasoning_type": "visual"}],
    "evochart": [{"image": stored(), "question": "Which?", "answer": "14", "is_clear": True}],
    "mmmu_pro_standard": [
        {"question": "See <image 1>", "options": "['x', 'y']", "answer": "B", "subject": "Art", "image_1": stored()}
    ],
    "mmmu_pro_vision": [{"image": stored(), "options": "['x', 'y']", "answer": "B", "subject": "Art"}],
    "mathvision_test": [{"decoded_image": stored(), "question": "Find.<image1>", "options": ["x"], "answer": "14"}],
    "mathvista_testmini": [
        {
            "decoded_image": stored(),
            "question": "How many?",
            "question_type": "free_form",
            "answer_type": "integer",
            "answer": "14",
        }
    ],
    "cv_bench": [{"image": stored(), "prompt": "Which? (A) x (B) y", "choices": ["red", "blue"], "answer": "(B)"}],
    "embspatial": [{"image": stored(), "question": "Which?", "answer_options": ["red", "blue"], "answer": 1}],
    "erqa": [{"images": [stored(), stored()], "question": "Which? A. x. B. y.", "answer": "B"}],
    "game_qa_lite": [{"image": stored(), "question": "Which?", "answer": "B", "options": ["red", "blue"]}],
    "blink": [
        {"image_1": stored(), "image_2": stored(), "prompt": "Which?", "choices": ["red", "blue"], "answer": "(B)"},
    ],
    "realworldqa": [{"image": stored(), "question": "Which? A. x B. y", "answer": "B"}],
    "simplevqa_en": [{"image": stored(), "question": "Who?", "answer": "14"}],
    "fvqa": [
        {
            "images": [stored()],
            "prompt": [{"content": "<image>Who?"}],
            "reward_model": {"ground_truth": "14", "candidate_answers": ["fourteen"]},
        }
    ],
    "mmvetv2": [{"image_0": stored(), "image_1": stored(), "question": "<image_0><IMG>What?", "answer": "14"}],
    "countbenchqa": [{"image": stored(), "question": "How many?", "number": 14}],
    "countqa": [{"image": stored(), "questions": ["How many?", "How few?"], "answers": ["14", "14"]}],
    "mme_realworld_lite": [
        {"bytes": text(), "question": "Which?", "multi-choice options": ["(A) x", "(B) y"], "answer": "B"}
    ],
    "vstar_bench": [{"image": stored(), "text": "Which?\n(A) x\n(B) y", "label": "B", "category": "relation"}],
    "aerialvg_bbox": [{"image": stored(), "filename": "a.png", "grounding": {"caption": "A.", "regions": [_REGION]}}],
    "visual_probe_easy": [{"images": [stored()], "problem": "<image>Which?", "solution": "14"}],
    "visual_probe_medium": [{"images": [stored()], "problem": "<image>Which?", "solution": "14"}],
    "visual_probe_hard": [{"images": [stored()], "problem": "<image>Which?", "solution": "14"}],
    "screenspot": [{"image": stored(), "instruction": "close", "bbox": [0.1, 0.1, 0.5, 0.5], "data_type": "icon"}],
    "screenspotpro": [{"img_filename": "a/b.png", "instruction": "close", "bbox": [6, 6, 30, 30], "ui_type": "icon"}],
    "mm_mt_bench": [{"image": stored(), "category": "charts", "conversation": _CONVERSATION}],
    "mia_bench": [{"image": stored(), "instruction": "Write.", "components": ["a", "b"], "component_weight": [6, 4]}],
    "mmifeval": [
        {"image": text(), "id": 1, "tag": "P-Level", "infer_type": "main", "question": "Who?", "answer": '["14"]'},
        {
            "image": text(),
            "id": 2,
            "tag": "C-Level",
            "infer_type": "main",
            "instruction": "Write.",
            "constraints": _CONSTRAINTS,
        },
        {
            "image": text(),
            "id": 2,
            "tag": "C-Level",
            "infer_type": "aux_cmp_gpt",
            "instruction": "Write less.",
            "del_cons": "style",
        },
    ],
}
"""Rows by task. Of those that rules score, "14", "B" or the box and point of `GOOD` is right."""

GOOD = {
    "aerialvg_bbox": '[{"bbox_2d": [8, 8, 32, 32], "label": "bus"}]',
    "screenspot": '[{"point_2d": [10, 10]}]',
    "screenspotpro": '[{"point_2d": [10, 10]}]',
}


def right_answer(benchmark: Benchmark) -> str:
    """A completion that is right for the task's rows."""
    letters = ("mmmu", "cv_bench", "embspatial", "erqa", "game", "blink", "realworldqa", "mme_", "vstar")
    answer = "B" if benchmark.name.startswith(letters) else "14"
    text = GOOD.get(benchmark.name, f"It is \\boxed{{{answer}}}.")
    return f"I look.</think>\n<answer>{text}</answer>"


def write(benchmark: Benchmark, root: Path, rows: list[dict[str, Any]] | None = None, row_group: int = 2) -> Path:
    """Writes rows of a task where its loader looks for them. Returns the data set's folder."""
    source = benchmark.source
    rows = ROWS[benchmark.name] if rows is None else rows
    folder = root / source.repo
    if source.annotations:
        (folder / source.annotations).mkdir(parents=True)
        (folder / source.annotations / "app.json").write_text(json.dumps(rows))
        (folder / "images" / "a").mkdir(parents=True)
        (folder / "images" / "a" / "b.png").write_bytes(picture())
        return folder
    for config in source.configs or ("data",):
        (folder / config).mkdir(parents=True)
        file = folder / config / f"{source.split}-00000-of-00001.parquet"
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
        pq.write_table(table, file, row_group_size=row_group)
    return folder
