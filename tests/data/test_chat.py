"""Conversations as text: turns, tools, pictures inside parts, against transformers' rendering of the real templates."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import golden_dir
from vero_jax.data.chat import ChatTemplate, PromptError, conversation
from vero_jax.data.folder_settings import read_template
from vero_jax.data.media import take_media
from vero_jax.data.processor import Processor
from vero_jax.types import Video

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "crop",
            "description": "Looks closer: \"<b>\" & 'é'",
            "parameters": {"type": "object", "properties": {"box": {"type": "array"}}, "required": ["box"]},
        },
    },
    {"type": "function", "function": {"name": "read", "parameters": {}}},
]
CALLS = [
    {"type": "function", "function": {"name": "crop", "arguments": {"box": [1, 2], "why": "zu früh"}}},
    {"id": "c2", "type": "function", "function": {"name": "read", "arguments": '{"page": 2}'}},
]
USER = {"role": "user", "content": " What\n<b>is</b> it? "}
CONVERSATIONS = {
    "question": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "several turns": [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA bar."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Two."},
    ],
    "reasoning apart": [USER, {"role": "assistant", "content": "A bar.", "reasoning_content": "\nhm\n"}],
    "tools": [
        {"role": "system", "content": "Use tools."},
        USER,
        {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS},
        {"role": "tool", "content": "42"},
        {"role": "tool", "content": "page two"},
        {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
        {"role": "tool", "content": "43"},
    ],
}
PARTS = [
    {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "video"}, {"type": "text", "text": "b"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    {"role": "user", "content": [{"type": "text", "text": "sure?"}]},
]
TEMPLATES = ("Qwen3-VL-4B-Instruct", "Qwen2.5-VL-3B-Instruct", "Qwen2-VL", "Qwen3-text", "Qwen2.5-text")


def template(folder) -> ChatTemplate:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    return read_template(folder, config, {"eos_token": config["eos_token"]})


@pytest.mark.parity
@pytest.mark.real_data
@pytest.mark.parametrize("name", TEMPLATES)
def test_real_templates_render_as_transformers_renders_them(shared, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    small = shared / "assets" / "small_tokenizers" / "607a5bea"  # the text does not depend on the vocabulary
    theirs = transformers.AutoTokenizer.from_pretrained(small)
    ours = template(shared / "assets" / name)
    with_tools = "tool_calls" in ours.source
    for label, messages in CONVERSATIONS.items():
        if label == "tools" and not with_tools:
            continue
        for tools in (None, TOOLS) if with_tools else (None,):
            for start in (True, False):
                expected = theirs.apply_chat_template(
                    messages, tools=tools, chat_template=ours.source, tokenize=False, add_generation_prompt=start
                )
                assert ours.render(conversation(messages, 0), tools=tools, add_generation_prompt=start) == expected
    if "vision_start" in ours.source:
        expected = theirs.apply_chat_template(
            PARTS, chat_template=ours.source, tokenize=False, add_generation_prompt=True
        )
        assert ours.render(conversation(PARTS, 1, video_count=1)) == expected
        marked = [dict(PARTS[0], content="Be brief."), {"role": "user", "content": "<image>a<video>b"}, *PARTS[2:]]
        assert ours.render(conversation(marked, 1, video_count=1)) == expected


@pytest.mark.real_data
def test_templates_of_text_models_take_texts_in_parts(shared):
    turns = conversation([{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}], 0)
    assert "user\nab<|im_end|>" in template(shared / "assets" / "Qwen3-text").render(turns)


@pytest.mark.real_data
@pytest.mark.parametrize(("tools", "messages"), [(TOOLS, [USER]), (None, CONVERSATIONS["tools"])])
def test_a_template_that_would_drop_tools_in_silence_refuses_them(shared, tools, messages):
    with pytest.raises(PromptError, match=r"chat_template\.json has no place for tool"):
        template(shared / "assets" / "Qwen2.5-VL-3B-Instruct").render(conversation(messages, 0), tools=tools)


def test_a_turn_that_only_calls_tools_needs_no_content():
    turns = conversation([USER, {"role": "assistant", "content": None, "tool_calls": CALLS}], 0)
    assert turns[1]["content"] == "" and turns[1]["tool_calls"] == CALLS


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ("hi", "turn 2 is a str"),
        ({"role": "robot", "content": "hi"}, "turn 2 has role 'robot'"),
        ({"content": "hi"}, "turn 2 has role None"),
        ({"role": "user"}, "turn 2 has a content of type NoneType"),
        ({"role": "user", "content": 7}, "turn 2 has a content of type int"),
        ({"role": "user", "content": [7]}, "turn 2 has a part that is no text, image or video: 7"),
        ({"role": "user", "content": [{"type": "audio"}]}, "turn 2 has a part that is no text"),
        ({"role": "user", "content": [{"type": "text"}]}, "turn 2 has a text part without a text"),
        ({"role": "assistant", "content": "", "tool_calls": "crop"}, "tool_calls of turn 2 is a str"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "crop"}]},
            "a call of turn 2 lacks a name or its",
        ),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": None}]}, "a call of turn 2 lacks a name"),
    ],
)
def test_malformed_turns_are_named(turn, message):
    with pytest.raises(PromptError, match=message) as caught:
        conversation([USER, turn], 0)
    assert caught.value.reason.startswith("malformed")


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"name": "crop"}, "the tools are a dict"),
        ([TOOLS[0], {"type": "function"}], "tool 2 has no name"),
        (["crop"], "tool 1 has no name"),
        ([{"function": "x"}], "tool 1 has no name"),
    ],
)
def test_malformed_tools_are_named(tools, message):
    with pytest.raises(PromptError, match=message):
        ChatTemplate("{{ tools }}").render(conversation([USER], 0), tools=tools)


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content + 1 }}", "{{ messages[9].content }}", "{{ 'x' | tojson(3, 4, 5) }}"]
)
def test_whatever_a_template_trips_over_is_a_prompt_error(source):
    with pytest.raises(PromptError, match="chat template refuses the messages"):
        ChatTemplate(source).render(conversation([USER], 0))


# ------------------------------------------------------------------ pictures inside the conversation


def picture(level: int, mode: str = "L") -> Image.Image:
    return Image.new(mode, (4, 4), level)


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def levels(encoded) -> list[int]:
    return [int(np.asarray(Image.open(io.BytesIO(data)))[0, 0]) for data in encoded]


def test_pictures_inside_parts_and_beside_come_in_the_order_of_their_places(tmp_path):
    (tmp_path / "two.png").write_bytes(encode(picture(2)))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture(1)}, {"image": tmp_path / "two.png"}]},
        {"role": "user", "content": "then <image> and"},
        {"role": "user", "content": [{"type": "image"}, {"type": "image", "path": str(tmp_path / "two.png")}]},
    ]
    turns, found, _ = take_media(messages, [encode(picture(3)), picture(4)], [])
    assert levels(found) == [1, 2, 3, 4, 2]
    assert turns[0]["content"] == [{"type": "image"}, {"type": "image"}]
    assert len(conversation(turns, 5)) == 3
    assert "image" in messages[0]["content"][0]  # the caller's messages are as they were


def test_a_mode_that_png_lacks_is_kept():
    (_, (data,), _) = take_media(
        [{"role": "user", "content": [{"type": "image", "image": picture(0, "CMYK")}]}], [], []
    )
    assert Image.open(io.BytesIO(data)).mode == "CMYK"


def test_videos_inside_parts_are_stacks_of_frames():
    part = {"type": "video", "video": [picture(1), picture(2)], "fps": 4}
    other = Video((b"x",), 1.0)
    _, _, found = take_media([{"role": "user", "content": [part, {"type": "video"}]}], [], [other])
    assert levels(found[0].frames) == [1, 2] and found[0].fps == 4.0 and found[1] is other


def test_pictures_without_a_place_stand_before_the_first_question_images_first():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "user", "content": "r"}]
    turns, _, _ = take_media(messages, [picture(1), picture(2)], [Video((b"x",))])
    assert [turn["content"] for turn in turns] == ["s", "<image><image><video>q", "r"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    turns, _, _ = take_media(parts, [picture(1)], [Video((b"x",))])
    assert [part["type"] for part in turns[0]["content"]] == ["image", "video", "text"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image", "image": "/no/such.png"}, "cannot read /no/such.png"),
        ({"type": "image", "image": 7}, "a int is no file, bytes or Pillow image"),
        ({"type": "image_url", "image_url": {"url": "a"}}, "part that is no text, image or video"),
        ({"type": "image", "url": "a"}, "gives no file, bytes or image"),
        ({"type": "video", "video": "film.mp4"}, "videos are not decoded"),
    ],
)
def test_pictures_that_cannot_be_read_are_named(part, message):
    with pytest.raises(PromptError, match=message):
        turns, found, stacks = take_media([{"role": "user", "content": [part]}], [], [])
        conversation(turns, len(found), video_count=len(stacks))


@pytest.mark.golden_model
def test_the_processor_takes_tools_and_inline_pictures():
    processor = Processor.from_folder(golden_dir("model") / "q3vl_tied_gqa2")
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "content": "42"},
    ]
    prompt = processor.chat(messages, tools=TOOLS)
    text = processor.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    assert '<tools>\n{"type": "function", "function": {"name": "crop"' in text and "<tool_response>\n42\n" in text
    assert prompt.image_sizes == ((64, 64),) and prompt.grids.shape == (1, 3)
