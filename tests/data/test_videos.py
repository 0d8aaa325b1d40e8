"""Videos: sizes, times, samples and whole prompts against transformers, and the mistakes a user can make."""

from __future__ import annotations

import dataclasses
import io
import json
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import golden_dir
from vero_jax.data import geometry, images, videos
from vero_jax.data.chat import PromptError
from vero_jax.data.processor import Processor
from vero_jax.errors import UserError
from vero_jax.types import Video

QWEN3 = videos.VideoSettings(16, 2, 2, 4096, 25165824, "video")
QWEN2_5 = videos.VideoSettings(14, 2, 2, 3136, 12845056, "frame", tokens_per_second=2.0)


def png(pixels: np.ndarray) -> bytes:
    return images.encode_png(pixels)


def frames(count: int, width: int = 64, height: int = 64) -> tuple[bytes, ...]:
    rng = np.random.default_rng(count)
    return tuple(png(rng.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(count))


# ------------------------------------------------------------------ whole prompts against the recorded ones


def video_prompts():
    """(case, batch, row) of every recorded prompt with a video whose pixels are recorded."""
    for path in sorted(golden_dir("model").glob("*/meta.json")):
        meta = json.loads(path.read_text())
        for batch in meta["recipe"]["batches"]:
            for row, sample in enumerate(batch["samples"]):
                if any(part[0] == "video" for part in sample["parts"]) and "pixels_from" not in batch:
                    yield pytest.param(path.parent, batch["name"], row, id=f"{path.parent.name}-{batch['name']}-{row}")


def recorded_videos(case: Path, data, batch: str, recipe) -> list[Video]:
    """The stored frames, made again from the normalised patches."""
    settings = Processor.from_folder(case).image_settings
    shapes = [part for sample in recipe["samples"] for part in sample["parts"] if part[0] == "video"]
    start, found = 0, []
    for grid, (_, count, _, _, fps) in zip(data[f"{batch}.video_grid_thw"], shapes, strict=True):
        values = data[f"{batch}.pixel_values_videos"][start : start + grid.prod()]
        start += grid.prod()
        channel = np.repeat(np.arange(3), values.shape[1] // 3)
        levels = (values * np.asarray(settings.std)[channel] + np.asarray(settings.mean)[channel]) * 255
        pixels = images.unpatchify(np.round(levels).astype(np.uint8), tuple(grid), settings.patch_size)
        found.append(Video(tuple(png(frame) for frame in pixels[:count]), fps))
    return found


@pytest.mark.golden_model
@pytest.mark.parametrize(("case", "batch", "row"), video_prompts())
def test_prompts_with_videos_equal_the_recorded_ones(case, batch, row):
    data = np.load(case / "io.npz")
    recipe = next(
        entry for entry in json.loads((case / "meta.json").read_text())["recipe"]["batches"] if entry["name"] == batch
    )
    all_videos = recorded_videos(case, data, batch, recipe)

    def before(kind: str) -> int:
        return sum(part[0] == kind for sample in recipe["samples"][:row] for part in sample["parts"])

    parts, pictures, stacks = [], [], []
    for part in recipe["samples"][row]["parts"]:
        parts.append({"type": part[0], **({"text": part[1]} if part[0] == "text" else {})})
        if part[0] == "image":
            pictures.append(png(data[f"{batch}.image{before('image') + len(pictures)}"]))
        if part[0] == "video":
            stacks.append(all_videos[before("video") + len(stacks)])
    style = "v4" if batch.endswith("v4prompt") else "v5"
    processor = Processor.from_folder(case, video_prompt=style)
    prompt = processor.chat([{"role": "user", "content": parts}], pictures, stacks)

    mask = data[f"{batch}.attention_mask"][row].astype(bool) & ~data[f"{batch}.response_mask"][row].astype(bool)
    np.testing.assert_array_equal(prompt.token_ids, data[f"{batch}.input_ids"][row][mask])
    np.testing.assert_array_equal(prompt.positions.T, data[f"{batch}.position_ids"][:, row][:, mask])
    grids = data[f"{batch}.video_grid_thw"][before("video") :][: len(stacks)].tolist()
    expected = [data[f"{batch}.image_grid_thw"][before("image") + index].tolist() for index in range(len(pictures))]
    assert prompt.grids.tolist() == expected + grids  # in these prompts images stand before the videos
    seen = images.normalise(prompt.patches, processor.image_mean, processor.image_std)
    first = int(data[f"{batch}.video_grid_thw"][: before("video")].prod(axis=1).sum())
    count = int(np.prod(grids, axis=1).sum())
    recorded = data[f"{batch}.pixel_values_videos"][first : first + count]
    np.testing.assert_allclose(seen[len(seen) - count :], recorded, atol=1e-6)
    if pictures:
        first = int(data[f"{batch}.image_grid_thw"][: before("image")].prod(axis=1).sum())
        np.testing.assert_array_equal(
            seen[: len(seen) - count], data[f"{batch}.pixel_values"][first:][: len(seen) - count]
        )


# ------------------------------------------------------------------ the rules


@pytest.mark.parity
def test_sizes_equal_those_of_transformers():
    theirs = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl").smart_resize
    rng = np.random.default_rng(0)
    for _ in range(400):
        count = int(rng.integers(2, 40))
        height, width = (int(side) for side in np.exp(rng.uniform(0, 7.5, 2)))
        low, high = int(rng.integers(512, 70000)), int(rng.integers(80000, 3_000_000))
        try:
            expected = theirs(count, height, width, 2, 32, low, high)
        except ValueError:
            with pytest.raises(ValueError, match="200 times"):
                geometry.smart_resize_video(count, height, width, 32, 2, low, high)
        else:
            assert geometry.smart_resize_video(count, height, width, 32, 2, low, high) == expected


@pytest.mark.parity
def test_samples_times_and_rates_equal_those_of_transformers():
    module = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.video_utils import VideoMetadata

    theirs = types.SimpleNamespace(fps=2, min_frames=4, max_frames=768)
    for total in (1, 3, 7, 50, 240, 1801, 20000):
        for fps in (0.5, 1.0, 2.0, 23.976, 30.0):
            metadata = VideoMetadata(total_num_frames=total, fps=fps)
            expected = module.Qwen3VLVideoProcessor.sample_frames(theirs, metadata).tolist()
            sampled = videos.sample(Video((b"",) * total, fps), QWEN3)
            assert list(sampled.indices) == expected and len(sampled.frames) == len(expected)
            times = Qwen3VLProcessor._calculate_timestamps(None, list(expected), fps)
            assert videos.frame_times(sampled, 2) == times
            metadata.frames_indices = expected
            assert videos.seconds_per_grid(sampled, 2) == 2 / metadata.sampled_fps


def test_limits_of_qwen2_5_count_each_frame_and_of_qwen3_all_together():
    assert QWEN2_5.resized(2, 560, 280) == QWEN2_5.resized(300, 560, 280) == (280, 560)
    assert QWEN3.resized(2, 640, 320) == (320, 640)
    height, width = QWEN3.resized(768, 640, 320)
    assert height * width * 768 <= QWEN3.max_pixels and (height, width) == (128, 256)


def test_a_cap_on_the_pixels_of_a_frame_is_followed_where_the_folder_sets_it():
    capped = dataclasses.replace(QWEN3, max_video_tokens=768)
    assert QWEN3.resized(2, 3200, 3200) == (3200, 3200)
    height, width = capped.resized(2, 3200, 3200)
    assert height == width and 700_000 < height * width <= 768 * 32 * 32
    capped = dataclasses.replace(QWEN2_5, max_video_tokens=1000)
    height, width = capped.resized(100, 1400, 1400)
    assert height * width <= 900 * 28 * 28 * 2 // 100


def test_frames_fill_the_temporal_slices_and_an_odd_last_one_is_repeated():
    stack = videos.open_frames(Video(frames(3), 2.0), QWEN3)
    assert stack.grid == (2, 4, 4)
    pixels = images.unpatchify(stack.patches("white"), stack.grid, 16)
    originals = [np.asarray(Image.open(io.BytesIO(data))) for data in stack.video.frames]
    np.testing.assert_array_equal(pixels, np.stack([*originals, originals[-1]]))


def test_times_are_the_middle_of_the_frames_of_a_patch():
    assert videos.frame_times(Video(frames(3), 2.0), 2) == [0.25, 1.0]
    assert videos.frame_times(Video(frames(4), 10.0, (0, 5, 20, 40)), 2) == [0.25, 3.0]


def test_an_unknown_rate_is_24_and_said():
    with pytest.warns(UserWarning, match="24 is taken"):
        assert videos.frame_times(Video(frames(2)), 2) == [1 / 48]


@pytest.mark.parametrize(
    ("video", "seconds"),
    [
        (Video((b"",) * 5, 4.0), 0.5),
        (Video((b"",) * 5, 30.0, (0, 30, 60, 90, 120), 150), 2.0),  # 5 of 150 frames at 30 a second: one a second
        (Video((b"",) * 5, 30.0, (0, 30, 60, 90, 120)), 2.0),
        (Video((b"",), 8.0, (3,)), 0.25),
    ],
)
def test_seconds_between_frames_follow_the_sampled_rate(video, seconds):
    assert videos.seconds_per_grid(video, 2) == pytest.approx(seconds)


def test_qwen2_5_samples_an_even_number_of_frames():
    sampled = videos.sample(Video((b"",) * 91, 30.0), QWEN2_5)
    assert len(sampled.frames) == 6 and sampled.indices == (0, 15, 30, 45, 60, 75) and sampled.source_frames == 91
    assert len(videos.sample(Video((b"",) * 3, 30.0), QWEN2_5).frames) == 2
    with pytest.raises(videos.VideoError, match="fewer than the 2"):
        videos.sample(Video((b"",), 30.0), QWEN2_5)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (Video(()), "no frames"),
        (Video((*frames(2), *frames(1, 32, 64)), 2.0), "different sizes, among them 32x64 and 64x64"),
        (Video(frames(2), 0.0), "fps 0.0 must be a positive number"),
        (Video(frames(2), float("nan")), "fps nan"),
        (Video(frames(2), 2.0, (1,)), "1 frame numbers for 2 frames"),
        (Video(frames(2), 2.0, (4, 1)), "must rise"),
        (Video(frames(2), 2.0, (1, 9), 9), "frame number 9 of a source of 9"),
        (Video(frames(1), 2.0), "shorter than one patch of 2"),
        (Video(frames(2, 401, 2), 2.0), "200 times"),
    ],
)
def test_videos_that_cannot_be_used_say_why(video, message):
    with pytest.raises(videos.VideoError, match=message):
        videos.open_frames(video, QWEN3)


def test_a_broken_frame_is_named_in_the_prompts_error(processor):
    with pytest.raises(PromptError) as caught:
        processor.chat([{"role": "user", "content": "Hi"}], videos=[Video((b"broken",) * 2, 2.0)])
    assert caught.value.reason == "image not readable"


def test_sampling_twice_is_refused():
    with pytest.raises(videos.VideoError, match="sample already"):
        videos.sample(Video(frames(2), 2.0, (0, 1)), QWEN3)


# ------------------------------------------------------------------ prompts and folders


@pytest.fixture(scope="module")
def processor():
    return Processor.from_folder(golden_dir("model") / "q3vl_video")


def test_both_forms_of_the_video_prompt_differ_by_the_outer_pair(processor):
    video = Video(frames(4, 32, 32), 1.0)
    older = dataclasses.replace(processor, video_prompt="v4")
    texts = [
        maker.tokenizer.decode(maker.chat([{"role": "user", "content": "a<video>b"}], videos=[video]).token_ids, False)
        for maker in (processor, older)
    ]
    pads = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    frames_text = f"<0.5 seconds>{pads}<2.5 seconds>{pads}"
    assert f"a<|vision_start|>{frames_text}<|vision_end|>b" in texts[0]
    assert f"a{frames_text}b" in texts[1]


def test_images_and_videos_mix_in_the_order_of_their_markers(processor):
    turns = [{"role": "user", "content": "<video> then <image> then <video>"}]
    first, second = Video(frames(2, 32, 32), 2.0), Video(frames(4, 48, 32), 2.0)
    prompt = processor.chat(turns, [frames(1, 64, 32)[0]], [first, second])
    assert prompt.grids.tolist() == [[1, 4, 4], [1, 4, 8], [2, 4, 6]]
    assert len(prompt.patches) == prompt.grids.prod(axis=1).sum() == 4 * (prompt.image_index >= 0).sum()
    pixels = images.unpatchify(prompt.patches[:16], (1, 4, 4), 8)
    np.testing.assert_array_equal(pixels[0], np.asarray(Image.open(io.BytesIO(first.frames[0]))))


def test_without_videos_the_marker_is_ordinary_text(processor):
    prompt = processor.chat([{"role": "user", "content": "What does <video> do in HTML?"}])
    assert "<video>" in processor.tokenizer.decode(prompt.token_ids)


@pytest.mark.parametrize("text", ["<video><video>", "see <video> and <video> and"])
def test_markers_and_videos_must_match(processor, text):
    with pytest.raises(PromptError, match="2 <video> markers for 1 videos"):
        processor.chat([{"role": "user", "content": text}], videos=[Video(frames(2), 2.0)])


def test_placeholders_typed_into_the_text_are_refused(processor):
    with pytest.raises(PromptError, match="0 image and 2 video placeholders for 0 images and 1 videos"):
        processor.chat([{"role": "user", "content": "<video><|video_pad|>"}], videos=[Video(frames(2), 2.0)])


def test_video_settings_come_from_the_folder(processor):
    settings = processor.video_settings
    assert (settings.limits, settings.min_pixels, settings.max_pixels) == ("video", 512, 49152)
    assert settings.writes_times and (settings.fps, settings.min_frames, settings.max_frames) == (2.0, 4, 768)
    other = Processor.from_folder(golden_dir("model") / "q25vl_video_tied").video_settings
    assert (other.limits, other.min_pixels, other.max_pixels, other.tokens_per_second) == ("frame", 256, 2560, 2.0)


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path):
    for number, level in ((1, 10), (2, 20), (10, 100)):
        (tmp_path / f"frame{number}.png").write_bytes(png(np.full((4, 4, 3), level, np.uint8)))
    (tmp_path / "notes.txt").write_text("no frame")
    video = videos.read_frames(tmp_path, 5.0)
    assert [np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0] for data in video.frames] == [10, 20, 100]
    assert video.fps == 5.0 and video.indices is None


@pytest.mark.parametrize(
    ("name", "fps", "message"), [("no", None, "no folder of frames"), (".", 0.0, "0.0 frames per")]
)
def test_folders_that_cannot_be_used_are_named(tmp_path, name, fps, message):
    with pytest.raises(UserError, match=message):
        videos.read_frames(tmp_path / name, fps)
    with pytest.raises(UserError, match="holds no frames"):
        videos.read_frames(tmp_path)


def test_known_rates_warn_of_nothing(processor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.chat([{"role": "user", "content": "Hi"}], videos=[Video(frames(2), 2.0)])
