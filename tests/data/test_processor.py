"""Prompts against transformers' recorded ids and pixels; chat templates; what happens to rows that cannot be used."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import golden_dir
from vero_jax.config import BuildConfig
from vero_jax.data import geometry, images
from vero_jax.data.chat import QWEN_TEMPLATE, ChatTemplate, PromptError, conversation
from vero_jax.data.folder_settings import write_system_prompt
from vero_jax.data.policy_folder import write_policy_files
from vero_jax.data.processor import Processor
from vero_jax.data.prompts import system_prompt
from vero_jax.errors import UserError
from vero_jax.types import Example, Video


def png(width: int, height: int, color="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def example(text: str, *pictures: bytes) -> Example:
    return Example(
        id="e1",
        domain="stem",
        source="test",
        messages=({"role": "user", "content": text},),
        images=pictures,
        reward_type="string_match",
        ground_truth="4",
        extra_info={},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "folder"
    write_policy_files(path, BuildConfig(vocab_size=400), ["How many red circles? <answer>\\boxed{3}</answer>"] * 50)
    return path


@pytest.fixture(scope="module")
def processor(folder):
    return Processor.from_folder(folder)


# ------------------------------------------------------------------ against transformers


def recorded_prompts():
    """(case, batch, row, prompt text, expanded text) of every recorded prompt without a video."""
    for path in sorted(golden_dir("model").glob("*/meta.json")):
        for batch, texts in json.loads(path.read_text())["texts"].items():
            for row, text in enumerate(texts):
                if "<|video_pad|>" not in text["prompt_text"]:
                    yield pytest.param(path.parent, batch, row, text, id=f"{path.parent.name}-{batch}-{row}")


def messages_of(prompt_text: str) -> list[dict[str, str]]:
    turns = []
    for turn in prompt_text.split("<|im_start|>")[1:-1]:
        role, content = turn.split("\n", 1)
        content = content.removesuffix("<|im_end|>\n").replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
        turns.append({"role": role, "content": content})
    return turns


@pytest.mark.golden_model
@pytest.mark.parametrize(("case", "batch", "row", "text"), recorded_prompts())
def test_prompts_equal_the_recorded_ones(case, batch, row, text):
    data = np.load(case / "io.npz")
    processor = Processor.from_folder(case)
    marked = text["prompt_text"].count("<|image_pad|>")
    prefix = f"{batch}.image"
    pictures = [data[f"{prefix}{i}"] for i in range(99) if f"{prefix}{i}" in data]
    if marked and not pictures:
        pytest.skip("the raw pictures of this batch are not recorded")
    texts = json.loads((case / "meta.json").read_text())["texts"][batch]
    before = sum(other["prompt_text"].count("<|image_pad|>") for other in texts[:row])
    encoded = []
    for array in pictures[before : before + marked]:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    prompt = processor.chat(messages_of(text["prompt_text"]), encoded)

    mask = data[f"{batch}.attention_mask"][row].astype(bool) & ~data[f"{batch}.response_mask"][row].astype(bool)
    np.testing.assert_array_equal(prompt.token_ids, data[f"{batch}.input_ids"][row][mask])
    np.testing.assert_array_equal(prompt.positions.T, data[f"{batch}.position_ids"][:, row][:, mask])
    assert prompt.token_ids.dtype == prompt.positions.dtype == prompt.image_index.dtype == np.int32
    if marked:
        grids = data[f"{batch}.image_grid_thw"]
        np.testing.assert_array_equal(prompt.grids, grids[before : before + marked])
        start = int(grids[:before].prod(axis=1).sum())
        values = images.normalise(prompt.patches, processor.image_mean, processor.image_std)
        np.testing.assert_array_equal(values, data[f"{batch}.pixel_values"][start : start + len(values)])


@pytest.mark.real_data
def test_the_real_qwen3_vl_processor_reads_real_questions(shared):
    parquet = pytest.importorskip("pyarrow.parquet")
    processor = Processor.from_folder(shared / "assets" / "Qwen3-VL-4B-Instruct")
    assert (processor.vocab_size, processor.eos_ids, processor.pad_id) == (151936, (151645, 151643), 151643)
    banned = set(processor.banned_ids)
    assert banned >= set(range(151669, 151936)) | {151644, 151652, 151653, 151654, 151655, 151656}
    assert not banned & {151645, 151643, 151657, 151658, 151667, 151668} and min(banned) == 151644
    files = sorted((shared / "data" / "real_mini" / "hub").glob("*/val*.parquet"))
    for path in files:
        row = parquet.read_table(path).slice(0, 1).to_pylist()[0]
        turns = row["prompt"]
        if isinstance(turns, dict):
            turns = [{"role": r, "content": c} for r, c in zip(turns["role"], turns["content"], strict=True)]
        picture = row.get("image") or row["images"][0]
        prompt = processor.chat(turns, [picture["bytes"]])
        assert len(prompt.patches) == 4 * (prompt.token_ids == 151655).sum() == prompt.grids.prod()
        assert processor.decode(prompt.token_ids).startswith("user\n")
    assert files


@pytest.mark.real_data
def test_our_template_writes_what_qwen3_vl_writes(shared):
    source = json.loads((shared / "assets/Qwen3-VL-4B-Instruct/chat_template.json").read_text())["chat_template"]
    theirs, ours = ChatTemplate(source), ChatTemplate(QWEN_TEMPLATE)
    picture, video, text = {"type": "image"}, {"type": "video"}, {"type": "text", "text": " What\n\n<b>? "}
    system = {"role": "system", "content": "Be brief. "}
    conversations = [
        [{"role": "user", "content": "\nHi {{ you }} "}],
        [system, {"role": "user", "content": [picture, text, picture]}],
        [{"role": "system", "content": [text, picture]}, {"role": "user", "content": [video, text]}],
        [
            {"role": "user", "content": [picture, text]},
            {"role": "assistant", "content": "<think>\nx</think> 4\n"},
            {"role": "user", "content": "and\n"},
            {"role": "assistant", "content": [text]},
        ],
    ]
    for turns in conversations:
        for start in (True, False):
            rendered = theirs.render(turns, add_generation_prompt=start)
            assert ours.render(turns, add_generation_prompt=start) == rendered


# ------------------------------------------------------------------ prompts


def test_a_prompt_holds_sizes_patches_and_positions(processor):
    prompt = processor.prompt(example("<image>How many? <image>", png(128, 128), png(70, 40)))
    assert prompt.image_sizes == ((128, 128), (70, 40))
    assert prompt.resized_sizes == ((128, 128), (64, 32))
    assert prompt.grids.tolist() == [[1, 8, 8], [1, 2, 4]]
    assert prompt.patches.shape == (72, 1536) and prompt.patches.dtype == np.uint8
    assert (prompt.image_index >= 0).sum() == 18
    np.testing.assert_array_equal(prompt.image_index[prompt.image_index >= 0], np.arange(18))
    assert prompt.next_position == prompt.positions.max() + 1 < len(prompt.token_ids)


def test_a_text_only_prompt_has_no_patches(processor):
    prompt = processor.prompt(example("How many?"))
    assert prompt.patches.shape == (0, 1536) and prompt.grids.shape == (0, 3)
    assert prompt.next_position == len(prompt.token_ids)


def test_the_system_prompt_comes_first_and_joins_an_existing_one(folder):
    processor = Processor.from_folder(folder, system_prompt="Think.")
    text = processor.tokenizer.decode(processor.prompt(example("Hi")).token_ids, skip_special_tokens=False)
    assert text == "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    turns = conversation([{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}], 0, "Think.")
    assert [turn["content"] for turn in turns] == ["Think.\n\nOwn.", "Hi"]


def test_a_template_that_asks_for_the_format_gets_no_second_system_prompt(folder, tmp_path):
    text = system_prompt("think_answer")
    assert Processor.from_folder(folder, system_prompt=text).system_prompt == text
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    template = (own / "chat_template.jinja").read_text()
    asks = "{{- '<|im_start|>system\\nThink in <think>, answer in <answer>.<|im_end|>\\n' -}}"
    (own / "chat_template.jinja").write_text(f"{asks}\n{template}")
    processor = Processor.from_folder(own, system_prompt=text)
    assert processor.system_prompt == ""
    prompt = processor.chat([{"role": "user", "content": "How many?"}])
    assert processor.tokenizer.decode(prompt.token_ids, skip_special_tokens=False).count("<answer>") == 1
    # Another kind of system prompt says something that the template does not.
    assert Processor.from_folder(own, system_prompt="Be short.").system_prompt == "Be short."


def test_a_system_prompt_can_become_the_templates_own(folder, tmp_path):
    text = 'Say "x\\boxed{1}\\n"\nin <think>, it\'s in <answer> {{ 1 }} \U0001f600 é.'
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "chat_template.json").write_text(json.dumps({"chat_template": "older"}))
    write_system_prompt(own, text)
    assert "older" not in (own / "chat_template.json").read_text()

    def rendered(where, turns, system=""):
        processor = Processor.from_folder(where, system_prompt=system)
        return processor.template.render(conversation(turns, 0, processor.system_prompt))

    question = [{"role": "user", "content": "How many?"}]
    assert rendered(own, question) == rendered(folder, question, text)
    assert rendered(own, question, text) == rendered(folder, question, text)
    system = [{"role": "system", "content": "Be short."}, *question]
    assert rendered(own, system) == rendered(folder, system)


def test_questions_for_places_speak_of_the_policys_coordinates(folder):
    truth = '[{"bbox_2d": [0, 0, 8, 8]}]'
    question = "<image>\nGive point_2d in absolute pixel coordinates."

    def text(kind, **options):
        asked = dataclasses.replace(example(question, png(64, 64)), reward_type=kind, ground_truth=truth)
        processor = Processor.from_folder(folder, **options)
        return processor.decode(processor.prompt(asked).token_ids)

    assert "0 to 1000" in text("clicking", coordinates="auto")  # a Qwen3-VL
    assert "0 to 1000" in text("clicking", coordinates="normalized_1000")
    assert "pixel" in text("clicking", coordinates="pixels")
    assert "pixel" in text("clicking")  # left alone where nothing is said
    assert "pixel" in text("string_match", coordinates="normalized_1000")


def test_chat_puts_unmarked_images_before_the_first_question(processor):
    unmarked = processor.chat([{"role": "user", "content": "Hi"}], [png(32, 32)])
    marked = processor.chat([{"role": "user", "content": "<image>Hi"}], [png(32, 32)])
    np.testing.assert_array_equal(unmarked.token_ids, marked.token_ids)


def test_pixel_limits_can_be_set(folder):
    processor = Processor.from_folder(folder, min_pixels=64 * 64, max_pixels=96 * 96)
    assert processor.prompt(example("<image>", png(300, 300))).resized_sizes == ((96, 96),)
    assert processor.prompt(example("<image>", png(10, 10))).resized_sizes == ((64, 64),)


def test_the_background_setting_reaches_the_pixels(folder):
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(buffer, "PNG")
    for background, level in (("white", 255), ("reference", 0)):
        prompt = Processor.from_folder(folder, background=background).prompt(example("<image>", buffer.getvalue()))
        assert (prompt.patches == level).all()


@pytest.mark.parametrize(
    ("text", "pictures", "reason"),
    [
        ("What?", [png(32, 32)], "image markers do not match the images"),
        ("<image><image>", [png(32, 32)], "image markers do not match the images"),
        ("<image>", [], "image markers do not match the images"),
        ("<image> <|image_pad|>", [png(32, 32)], "image tokens do not match the images"),
        ("<image> <|video_pad|>", [png(32, 32)], "image tokens do not match the images"),
        ("<image>", [b"broken"], "image not readable"),
        ("<image>", [png(64, 64)[:60]], "image not readable"),
        ("<image>", [png(1, 300)], "image shape not usable"),
        ("<image>" + "word " * 900, [png(32, 32)], "prompt too long"),
    ],
)
def test_rows_that_cannot_be_used_say_why(folder, text, pictures, reason):
    processor = Processor.from_folder(folder, max_prompt_length=800)
    with pytest.raises(PromptError) as caught:
        processor.prompt(example(text, *pictures))
    assert caught.value.reason == reason
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_limit_counts_image_tokens_and_is_named(folder):
    with pytest.raises(PromptError, match=r"prompt of .* tokens, the limit is 40"):
        Processor.from_folder(folder, max_prompt_length=40).prompt(example("<image>", png(256, 256)))


def test_images_outside_user_turns_are_refused(processor):
    turns = [{"role": "system", "content": "<image>"}, {"role": "user", "content": "Hi"}]
    with pytest.raises(PromptError) as caught:
        processor.chat(turns, [png(32, 32)])
    assert caught.value.reason == "image tokens do not match the images"


def test_a_role_without_a_place_in_the_template_is_refused(processor):
    with pytest.raises(PromptError, match="role tool"):
        processor.chat([{"role": "tool", "content": "Hi"}])


# ------------------------------------------------------------------ responses


def test_responses_end_with_the_end_of_turn_and_decode_without_it(processor):
    text = "<think>Two.</think><answer>\\boxed{2}</answer>"
    ids = processor.encode_response(text)
    assert ids.dtype == np.int32 and ids[-1] == processor.eos_ids[0] == processor.tokenizer.token_to_id("<|im_end|>")
    assert processor.decode(ids) == text


def test_banned_ids_are_control_tokens_and_rows_without_a_token(processor):
    tokens = {processor.tokenizer.id_to_token(index) for index in processor.banned_ids}
    assert tokens >= {"<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", None}
    assert not tokens & {"<|im_end|>", "<|endoftext|>", "<think>", "</think>", "a"}
    assert processor.vocab_size == 400 and max(processor.banned_ids) == 399


# ------------------------------------------------------------------ folders


def test_a_processor_survives_the_way_to_a_worker_process(processor):
    row = example("<image>How many?", png(50, 60))
    processor.prompt(row)
    copy = pickle.loads(pickle.dumps(processor))
    ours, theirs = processor.prompt(row), copy.prompt(row)
    for field in ("token_ids", "positions", "patches"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    assert dataclasses.replace(copy, max_prompt_length=9).eos_ids == processor.eos_ids


def test_importing_the_processor_imports_no_framework():
    code = "import sys, vero_jax.data.processor\nprint(sorted({'jax', 'torch', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "{", "config.json cannot be read as JSON"),
        ("config.json", '{"text_config": {"vocab_size": 400}}', "config.json has no image_token_id"),
        ("config.json", '{"text_config": {"vocab_size": 9}, "image_token_id": 5}', "vocab_size 9"),
        ("preprocessor_config.json", None, "preprocessor_config.json is missing"),
        ("preprocessor_config.json", '{"patch_size": 16}', "preprocessor_config.json has no temporal_patch_size"),
        ("chat_template.jinja", None, "has no chat template"),
        ("generation_config.json", "[", "generation_config.json cannot be read"),
        ("generation_config.json", "[]", "generation_config.json holds a list"),
    ],
)
def test_broken_folders_are_named(folder, tmp_path, name, content, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Processor.from_folder(copy)


def test_a_missing_folder_and_a_broken_template_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Processor.from_folder(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match=r"chat_template.jinja.*line 1"):
        Processor.from_folder(copy)


def test_both_spellings_of_the_pixel_limits_are_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "preprocessor_config.json"
    values = json.loads(path.read_text())
    del values["size"]
    path.write_text(json.dumps(values | {"min_pixels": 2048, "max_pixels": 4096}))
    settings = Processor.from_folder(copy).image_settings
    assert (settings.min_pixels, settings.max_pixels) == (2048, 4096)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"neither min_pixels nor size\.shortest_edge"):
        Processor.from_folder(copy)
    path.write_text(json.dumps(values | {"min_pixels": 1, "max_pixels": 900}))
    with pytest.raises(UserError, match="max_pixels=900"):
        Processor.from_folder(copy)


def test_geometry_of_a_prompt_matches_its_patches(processor):
    prompt = processor.prompt(example("<image>x<image>", png(64, 96), png(40, 200)))
    coords, _, segments = geometry.patch_geometry(prompt.grids)
    assert len(coords) == len(prompt.patches) and segments.max() == 2


# ------------------------------------------------------------------ families and generations of files


@pytest.fixture
def real(shared, tmp_path):
    """A copy of a real checkpoint's files (no weights) that can be changed."""

    def copy(name: str):
        target = tmp_path / name
        shutil.copytree(shared / "assets" / name, target, copy_function=shutil.copyfile)
        target.chmod(0o755)
        if not (target / "merges.txt").is_file():  # the families share one
            shutil.copyfile(shared / "assets" / "Qwen3-VL-4B-Instruct" / "merges.txt", target / "merges.txt")
        return target

    return copy


@pytest.mark.real_data
def test_qwen2_5_vl_has_its_own_patches_limits_and_statistics(real):
    processor = Processor.from_folder(real("Qwen2.5-VL-3B-Instruct"))
    settings, video = processor.image_settings, processor.video_settings
    assert (settings.patch_size, settings.min_pixels, settings.max_pixels) == (14, 3136, 12845056)
    assert processor.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert (video.limits, video.max_pixels, video.tokens_per_second) == ("frame", 12845056, 2.0)
    prompt = processor.chat([{"role": "user", "content": "Hi"}], [png(70, 40)])
    assert prompt.resized_sizes == ((84, 56),) and prompt.patches.shape == (24, 1176)
    text = processor.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")


@pytest.mark.real_data
@pytest.mark.parametrize("nested", [False, True])
def test_both_spellings_of_the_model_config_are_read(real, nested):
    folder = real("Qwen2.5-VL-3B-Instruct")
    config = json.loads((folder / "config.json").read_text())
    assert "text_config" not in config
    if nested:
        top = {"image_token_id", "video_token_id", "vision_config", "model_type"}
        config = {key: config[key] for key in top} | {"text_config": {k: v for k, v in config.items() if k not in top}}
        (folder / "config.json").write_text(json.dumps(config))
    processor = Processor.from_folder(folder)
    assert (processor.vocab_size, processor.image_token_id, processor.video_token_id) == (151936, 151655, 151656)


@pytest.mark.real_data
def test_settings_nested_in_processor_config_are_read_first(real):
    folder = real("Qwen3-VL-4B-Instruct")
    image = json.loads((folder / "preprocessor_config.json").read_text())
    video = json.loads((folder / "video_preprocessor_config.json").read_text())
    both = {
        "image_processor": image | {"size": {"shortest_edge": 2048, "longest_edge": 9216}},
        "video_processor": video,
    }
    (folder / "processor_config.json").write_text(json.dumps(both))
    settings = Processor.from_folder(folder).image_settings
    assert (settings.min_pixels, settings.max_pixels) == (2048, 9216)
    (folder / "preprocessor_config.json").unlink()
    (folder / "video_preprocessor_config.json").unlink()
    assert Processor.from_folder(folder).video_settings.max_pixels == 25165824


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["Qwen3-text", "Qwen2.5-text"])
def test_text_only_checkpoints_make_prompts_and_refuse_pictures(real, name):
    processor = Processor.from_folder(real(name))
    assert processor.image_settings is processor.video_settings is processor.image_token_id is None
    prompt = processor.chat([{"role": "user", "content": "What is <video>?"}])
    assert prompt.patches.shape == (0, 0) and prompt.grids.shape == (0, 3) and (prompt.image_index == -1).all()
    np.testing.assert_array_equal(prompt.positions, np.arange(len(prompt.token_ids))[:, None].repeat(3, axis=1))
    copy = pickle.loads(pickle.dumps(processor))
    np.testing.assert_array_equal(
        copy.prompt(example("What is <video>?")).token_ids, processor.prompt(example("What is <video>?")).token_ids
    )
    for pictures, stacks in (([png(32, 32)], []), ([], [Video((png(32, 32),) * 2, 2.0)])):
        with pytest.raises(PromptError, match="a text-only checkpoint cannot see") as caught:
            processor.chat([{"role": "user", "content": "Hi"}], pictures, stacks)
        assert caught.value.reason == "checkpoint without vision"
    with pytest.raises(PromptError, match="text-only"):
        processor.resized(10, 10)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"merge_size": 4}, "merge_size 4, the model's config.json says .* 2"),
        ("preprocessor_config.json", {"patch_size": 14}, "patch_size 14"),
        ("video_preprocessor_config.json", {"image_mean": [0.4] * 3}, "image_mean of videos is .* they must be equal"),
        ("video_preprocessor_config.json", {"patch_size": 14}, "patch_size of videos is 14, that of images 16"),
        ("video_preprocessor_config.json", {"size": {"shortest_edge": 9, "longest_edge": 8}}, "from 9 to 8 pixels"),
        ("config.json", {"image_token_id": None}, "config.json has no image_token_id"),
    ],
)
def test_files_that_contradict_each_other_are_named(real, file, change, message):
    path = real("Qwen3-VL-4B-Instruct") / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        Processor.from_folder(path.parent)


@pytest.mark.real_data
@pytest.mark.parametrize("home", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_chat_template_is_found_wherever_it_lies(real, home):
    folder = real("Qwen3-VL-4B-Instruct")
    source = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "chat_template.json").unlink()
    if home == "chat_template.jinja":
        (folder / home).write_text(source)
    elif home == "chat_template.json":
        (folder / home).write_text(json.dumps({"chat_template": source}))
    else:
        config["chat_template"] = [{"name": "default", "template": source}, {"name": "tool_use", "template": "x"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    template = Processor.from_folder(folder).template
    assert template.source == source and template.place == str(folder / home)


def test_one_pixel_makes_a_prompt(processor):
    prompt = processor.chat([{"role": "user", "content": "Hi"}], [png(1, 1, (9, 8, 7))])
    rows, columns = processor.resized(1, 1)
    assert prompt.image_sizes == ((1, 1),) and len(prompt.patches) == rows * columns // 256
    assert set(np.unique(prompt.patches)) == {7, 8, 9}


def test_an_image_too_long_for_its_width_is_one_sentence(processor):
    with pytest.raises(
        PromptError, match=r"an image of 3x700 pixels has one side more than 200 times as long"
    ) as caught:
        processor.chat([{"role": "user", "content": "Hi"}], [png(3, 700)])
    assert "\n" not in str(caught.value)
