"""Pixels against transformers' PIL processor, and every odd kind of image file."""

from __future__ import annotations

import hashlib
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.conftest import golden_dir
from vero_jax.data import geometry, images

SETTINGS = {
    "q3": (16, 65536, 16777216, (0.5,) * 3, (0.5,) * 3),
    "q3small": (16, 4096, 262144, (0.5,) * 3, (0.5,) * 3),
    "q25": (
        14,
        3136,
        12845056,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(data: bytes, background: images.Background = "white") -> np.ndarray:
    return np.asarray(images.to_rgb(images.open_image(data), background))


def recorded():
    """The folder of recorded images and the cases whose picture is there."""
    folder = golden_dir("model") / "images"
    if not (folder / "images.json").is_file():
        return folder, {}
    cases = json.loads((folder / "images.json").read_text())["cases"]
    return folder, {name: case for name, case in cases.items() if (folder / name.split("|")[0]).is_file()}


@pytest.mark.golden_model
@pytest.mark.parametrize("name", sorted(recorded()[1]))
def test_pixels_and_values_equal_the_recorded_ones_bit_for_bit(name):
    folder, cases = recorded()
    case, (file, setting) = cases[name], name.split("|")
    patch, low, high, mean, std = SETTINGS[setting]
    image = images.open_image((folder / file).read_bytes())
    size = geometry.smart_resize(image.height, image.width, 2 * patch, low, high)
    pixels = images.resize(images.to_rgb(image), *size)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["u8_sha256"]
    patches = images.patchify(pixels, patch)
    assert list(patches.shape) == case["pv_shape"]
    values = images.normalise(patches, mean, std)
    assert values.dtype == np.float32
    assert hashlib.sha256(values.tobytes()).hexdigest() == case["pv_sha256"]


@pytest.mark.golden_model
def test_reference_background_equals_the_pixels_of_the_older_processor():
    folder, cases = recorded()
    for name, case in cases.items():
        file, setting = name.split("|")
        patch, low, high, _, _ = SETTINGS[setting]
        image = images.open_image((folder / file).read_bytes())
        size = geometry.smart_resize(image.height, image.width, 2 * patch, low, high)
        pixels = images.resize(images.to_rgb(image, "reference"), *size)
        expected = case["variants"]["v4"].get("u8_sha256", case["u8_sha256"])
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected, name


def test_a_still_image_repeats_its_frame_in_every_patch():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    patches = images.patchify(pixels, 16).reshape(24, 3, 2, 16, 16)
    np.testing.assert_array_equal(patches[:, :, 0], patches[:, :, 1])
    coords, _, _ = geometry.patch_geometry(np.asarray([[1, 4, 6]]))
    for patch, (row, column) in zip(patches, coords, strict=True):
        expected = pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].transpose(2, 0, 1)
        np.testing.assert_array_equal(patch[:, 0], expected)


@pytest.mark.parametrize(
    ("count", "patch", "merge", "temporal"), [(1, 16, 2, 2), (3, 14, 2, 2), (4, 4, 1, 3), (6, 8, 2, 1)]
)
def test_patches_hold_every_pixel_of_every_frame(count, patch, merge, temporal):
    side = patch * merge
    frames = np.random.default_rng(0).integers(0, 256, (count, 2 * side, 3 * side, 3), np.uint8)
    patches = images.patchify_frames(frames, patch, merge, temporal)
    times = -(-count // temporal)
    grid = (times, 2 * merge, 3 * merge)
    assert patches.shape == (np.prod(grid), 3 * temporal * patch**2)
    back = images.unpatchify(patches, grid, patch, merge, temporal)
    np.testing.assert_array_equal(back[:count], frames)
    assert len(back) == times * temporal and (back[count:] == frames[-1]).all()


def test_one_pixel_is_an_image():
    image = images.to_rgb(images.open_image(encode(Image.new("RGB", (1, 1), (9, 8, 7)))))
    assert images.resize(image, 256, 256).reshape(-1, 3).tolist() == [[9, 8, 7]] * 65536


def test_patchify_refuses_sides_that_do_not_divide():
    with pytest.raises(ValueError, match="40x32"):
        images.patchify(np.zeros((32, 40, 3), np.uint8), 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_on_white_or_is_dropped(mode):
    if mode == "PA":  # a palette with a transparent entry
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 0, 0, 0])
        data = encode(image, transparency=1)
    else:
        data = encode(Image.new(mode, (4, 4)))
    assert (rgb(data) == 255).all()
    assert (rgb(data, "reference") == 0).all()


def test_half_transparent_pixels_mix_with_white():
    assert (rgb(encode(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))) == 127).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = rgb(encode(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels[..., 0], np.round(values / 257).astype(np.uint8))


def test_grey_palette_bilevel_and_cmyk_become_rgb():
    assert rgb(encode(Image.new("L", (3, 2), 77))).tolist() == [[[77] * 3] * 3] * 2
    assert rgb(encode(Image.new("1", (3, 2), 1))).tolist() == [[[255] * 3] * 3] * 2
    assert rgb(encode(Image.new("RGB", (3, 2), (200, 10, 10)).quantize(4))).shape == (2, 3, 3)
    cmyk = rgb(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert cmyk.shape == (8, 8, 3) and cmyk[0, 0, 0] > 200 > 60 > cmyk[0, 0, 1]


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert rgb(data)[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert rgb(encode(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).shape == (20, 30, 3)


def test_the_bytes_decide_the_format():
    assert rgb(encode(Image.new("RGB", (9, 7), "white"), "WEBP", lossless=True)).shape == (7, 9, 3)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_bytes_that_are_no_image_say_so(data):
    with pytest.raises(images.ImageError, match="image not readable") as caught:
        images.to_rgb(images.open_image(data))
    assert caught.value.reason == "image not readable"
    assert "object at" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_says_so(kind):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(images.ImageError, match="image not readable: 80x80"):
        rgb(data[: len(data) // 2])


def test_huge_images_pass_pillows_limit_but_not_ours(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 10_000)
    assert rgb(encode(Image.new("1", (90, 100)))).shape == (100, 90, 3)
    assert not recwarn.list
    for size in ((101, 100), (1000, 1000)):
        with pytest.raises(images.ImageError) as caught:
            images.open_image(encode(Image.new("1", size)))
        assert caught.value.reason == "image too large"


def test_errors_survive_the_way_back_from_a_worker_process():
    error = pickle.loads(pickle.dumps(images.ImageError("image too large", "9x9")))
    assert (error.reason, str(error)) == ("image too large", "image too large: 9x9")
