"""The command that shows what a checkpoint sees: the table, the pictures pixel for pixel, the page, and its errors."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import golden_dir
from vero_jax.config import BuildConfig
from vero_jax.data import images
from vero_jax.data.policy_folder import write_policy_files
from vero_jax.data.processor import Processor
from vero_jax.inspect import look, main, report
from vero_jax.runtime.prompt_page import write_prompt_page
from vero_jax.types import Video


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint folder without weights."""
    path = tmp_path_factory.mktemp("policy") / "folder"
    write_policy_files(path, BuildConfig(vocab_size=400), ["How many red circles? <answer>\\boxed{3}</answer>"] * 50)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(70, 40)).save(path)
    return path


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip"
    path.mkdir()
    for number in range(3):
        Image.fromarray(noise(64, 64, number)).save(path / f"{number}.png")
    return path


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_table_has_one_line_a_token_and_folds_pictures(folder, picture, capsys):
    assert main([str(folder), "--prompt", "Look: <image> How many?", "--image", str(picture)]) == 0
    lines = lines_of(capsys)
    prompt = Processor.from_folder(folder).chat([{"role": "user", "content": "Look: <image> How many?"}], [picture])
    table = [line.split(maxsplit=5) for line in lines[lines.index("") + 2 :]]
    assert lines[0] == f"tokens         {len(prompt.token_ids)} ({len(prompt.token_ids) - 2} text, 2 visual)"
    folded = [line for line in table if "image 1" in line[5]]
    first = int(np.flatnonzero(prompt.image_index == 0)[0])
    time = prompt.positions[first, 0]
    index, pad = f"{first}-{first + 1}", str(prompt.token_ids[first])
    assert folded == [[index, pad, str(time), str(time), f"{time}-{time + 1}", "<|image_pad|> x 2   image 1"]]
    text = [line for line in table if "image 1" not in line[5]]
    assert [int(line[0]) for line in text] == [i for i in range(len(prompt.token_ids)) if prompt.image_index[i] < 0]
    assert [int(line[1]) for line in text] == [int(i) for i in prompt.token_ids[prompt.image_index < 0]]
    assert [[int(cell) for cell in line[2:5]] for line in text] == prompt.positions[prompt.image_index < 0].tolist()
    assert spelled(lines).startswith("<|im_start|>user\nLook: <|vision_start|><|vision_end|> How many?<|im_end|>")


def test_the_facts_name_sizes_limits_and_template(folder, picture, capsys):
    main([str(folder), "--prompt", "Hi", "--image", str(picture), "--max-pixels", "9216"])
    facts = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines_of(capsys) if re.match(r"\w.*? {2,}", line))
    assert facts["image 1"] == "70x40 pixels, seen as 64x32, grid 1x2x4 patches, 2 tokens (1 rows of 2)"
    assert facts["patches"] == "8" and facts["image limits"].endswith("to 9,216 pixels (1 to 9 tokens)")
    assert facts["chat template"] == str(folder / "chat_template.jinja")
    seen = look(
        processor := Processor.from_folder(folder), prompt := processor.chat([{"role": "user", "content": "Hi"}])
    )
    assert dict(seen.facts)["next position"] == str(prompt.next_position)


def test_the_pictures_are_what_the_model_sees(folder, picture, clip, tmp_path, capsys):
    out = tmp_path / "seen"
    arguments = [str(folder), "--prompt", "Hi", "--image", str(picture), "--video", str(clip), "--out", str(out)]
    assert main([*arguments, "--fps", "2"]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["image_1.png", "index.html", *(f"video_1_frame_00{number}.png" for number in (1, 2, 3, 4))]
    expected = images.resize(Image.open(picture).convert("RGB"), 32, 64)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "image_1.png")), expected)
    for number, source in ((1, 0), (2, 1), (3, 2), (4, 2)):  # the last frame fills its patch twice
        seen = np.asarray(Image.open(out / f"video_1_frame_00{number}.png"))
        np.testing.assert_array_equal(seen, noise(64, 64, source))
    lines = lines_of(capsys)
    assert any("video 1" in line and "2 times 2 rows of 2" in line for line in lines)
    assert sum("<|video_pad|> x 4" in line for line in lines) == 2  # each time is a picture of its own
    assert not any(line.startswith("note:") for line in lines)


def test_an_unknown_frame_rate_is_noted(folder, clip, capsys):
    main([str(folder), "--prompt", "Hi", "--video", str(clip)])
    captured = capsys.readouterr()
    assert "note: the videos do not say how many frames a second has; 24 is taken (see --fps)" in captured.out
    assert captured.err == ""


def test_a_video_can_be_thinned_out(folder, tmp_path, capsys):
    for number in range(30):
        Image.fromarray(noise(32, 32, number)).save(tmp_path / f"{number}.png")
    main([str(folder), "--prompt", "Hi", "--video", str(tmp_path), "--fps", "10", "--sample-fps", "2"])
    assert "grid 3x2x2" in capsys.readouterr().out  # 30 frames at 10 a second are 3 seconds, 6 frames, 3 patches


def spelled(lines: list[str]) -> str:
    """The text of a prompt, put together again from the last column of its table."""
    table = lines[lines.index("") + 2 :]
    return "".join(json.loads(line.split(maxsplit=5)[5]) for line in table if line.endswith('"'))


def test_the_system_prompt_comes_first(folder, capsys):
    assert main([str(folder), "--prompt", "Hi", "--system", "Think."]) == 0
    assert spelled(lines_of(capsys)).startswith("<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nHi")


@pytest.mark.golden_model
def test_tools_reach_the_text_or_are_refused(folder, tmp_path, capsys):
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": {"name": "crop", "parameters": {}}}]))
    assert main([str(golden_dir("model") / "q3vl_video"), "--prompt", "Hi", "--tools", str(tools)]) == 0
    assert '<tools>\n{"type": "function", "function": {"name": "crop"' in spelled(lines_of(capsys))
    assert main([str(folder), "--prompt", "Hi", "--tools", str(tools)]) == 2
    assert "this chat template has no tools" in capsys.readouterr().err


class Page(html.parser.HTMLParser):
    """Collects what a page refers to and its tags, and checks that they are closed."""

    VOID = frozenset({"meta", "br", "image", "path", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.links, self.figures, self.table = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value for key, value in attributes.items() if key in ("href", "src")]
        if tag == "figure":
            self.figures.append(attributes)
        if tag == "td":
            self.table.append("")

    def handle_startendtag(self, tag, attributes):
        self.links += [value for key, value in attributes if key == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.table[-1] += data


def test_the_page_holds_pictures_grid_and_table_and_refers_to_nothing_outside(folder, picture, clip, tmp_path):
    processor = Processor.from_folder(folder)
    video = Video(tuple((clip / f"{number}.png").read_bytes() for number in range(3)), 2.0)
    prompt = processor.chat(
        [{"role": "user", "content": "<image>\n<script>alert(1)</script><video>"}], [picture], [video]
    )
    path = tmp_path / "index.html"
    write_prompt_page(path, look(processor, prompt), title="a & b")
    text = path.read_text()
    assert "<script>alert" not in text and "a &amp; b" in text
    page = Page()
    page.feed(text)
    assert not page.open
    data = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert len(data) == 5 and all(link.startswith(("data:", "#")) for link in page.links)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[0].split(",")[1]))))
    np.testing.assert_array_equal(shown, images.resize(Image.open(picture).convert("RGB"), 32, 64))
    starts = [figure for figure in page.figures if "data-first" in figure]
    first = int(np.flatnonzero(prompt.image_index == 0)[0])
    assert starts[0]["data-first"] == str(first) and starts[0]["data-columns"] == "2" and starts[0]["data-rows"] == "1"
    assert starts[1]["data-first"] == str(np.flatnonzero(prompt.image_index == 2)[0])
    assert starts[2]["data-time"] == str(prompt.positions[prompt.image_index == 6][0, 0])
    rows = len(look(processor, prompt).rows)
    assert len(page.table) == 6 * rows


def test_text_only_checkpoints_are_shown(shared_text_folder, capsys):
    assert main([str(shared_text_folder), "--prompt", "日本語 🙂"]) == 0
    out = capsys.readouterr().out
    assert "image limits   none; a text-only checkpoint" in out and "0 visual" in out
    assert main([str(shared_text_folder), "--prompt", "x", "--image", __file__]) == 2
    assert "a text-only checkpoint cannot see the images" in capsys.readouterr().err


@pytest.fixture
def shared_text_folder(folder, tmp_path):
    """The same tokenizer as a text-only checkpoint."""
    copy = tmp_path / "text"
    shutil.copytree(folder, copy)
    (copy / "preprocessor_config.json").unlink()
    (copy / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 400, "eos_token_id": 1}))
    return copy


def test_parts_of_a_character_are_spelled_as_in_the_vocabulary(folder):
    processor = Processor.from_folder(folder)
    seen = look(processor, processor.chat([{"role": "user", "content": "語"}]))
    assert not any("\ufffd" in line for line in report(seen))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder"], "the checkpoint /no/such/folder does not exist"),
        (["FOLDER", "--image", "/no/picture.png"], "cannot read /no/picture.png (No such file or directory)"),
        (["FOLDER", "--image", __file__], "bytes that no image format accepts"),
        (["FOLDER", "--video", "/no/frames"], "no folder of frames /no/frames"),
        (["FOLDER", "--prompt", "<image> <image>"], "2 <image> markers for 0 images"),
        (["FOLDER", "--tools", "/no/tools.json"], "cannot read the tools /no/tools.json"),
        (["FOLDER", "--tools", __file__], "is not valid JSON"),
        (["FOLDER", "--sample-fps", "0"], "--sample-fps 0.0 must be above 0"),
        (["FOLDER", "--out", __file__], "cannot write"),
    ],
)
def test_mistakes_are_one_sentence(folder, arguments, message, capsys):
    line = [str(folder) if argument == "FOLDER" else argument for argument in arguments]
    assert main([*line, *([] if "--prompt" in line else ["--prompt", "Hi"])]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error and "object at" not in error


def test_a_reader_that_leaves_early_sees_no_traceback(folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "vero_jax.inspect",
        str(folder),
        "--prompt",
        "word " * 20000,
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": ""}
    ) as process:
        assert process.stdout.readline().startswith("tokens")
        process.stdout.close()
        error = process.stderr.read()
    assert error == f"written: {tmp_path / 'index.html'}, pictures: 0\n"
    assert (tmp_path / "index.html").is_file()


def test_it_imports_no_framework():
    code = "import sys, vero_jax.inspect\nprint(sorted({'jax', 'torch', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
