"""New policies: the folder is complete, repeatable, and the same model for transformers as for us."""

from __future__ import annotations

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vero_jax.checkpoints.weights import load_params
from vero_jax.config import BuildConfig
from vero_jax.data.geometry import patch_geometry
from vero_jax.data.images import normalise
from vero_jax.data.policy_folder import mrope_section, write_policy_files
from vero_jax.data.processor import Processor
from vero_jax.errors import UserError
from vero_jax.models import attention
from vero_jax.models.build import build_policy
from vero_jax.models.config import ModelConfig
from vero_jax.models.inputs import VisionInputs
from vero_jax.models.policy import ModelDef

SMALL = BuildConfig(
    vocab_size=320,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_size=48,
    vision_hidden_size=32,
    vision_depth=3,
    vision_heads=2,
    vision_ffn_size=48,
    vision_positions=36,
    deepstack_layers=(0, 2),
)
CORPUS = ["How many red circles do you see? <think>Two.</think><answer>\\boxed{2}</answer>"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_policy(tmp_path_factory.mktemp("build") / "policy", SMALL, seed=3, corpus=CORPUS)


def picture_prompt(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    turns = [{"role": "user", "content": "<image>How many circles? <image>"}]
    return Processor.from_folder(folder).chat(turns, [buffer.getvalue()] * 2)


def our_logits(folder, prompt):
    model_def = ModelDef(ModelConfig.from_folder(folder))
    params = load_params(folder, model_def)
    coords, sizes, segments = patch_geometry(prompt.grids)

    @jax.jit
    def forward(params):
        model = model_def.bind(params)
        vision = VisionInputs(prompt.patches[None], coords[None], sizes[None], segments[None])
        features = model.encode_images(jax.tree.map(jnp.asarray, vision))
        image_index = jnp.asarray(prompt.image_index[None])
        x = model.embed(jnp.asarray(prompt.token_ids[None]), features, image_index)
        ones = jnp.ones_like(image_index)

        def attend(q, k, v, cache):
            return attention.shared_prefix_attention(q, k, v, ones, 0 * ones, 64), cache

        positions = jnp.asarray(prompt.positions[None])
        hidden, _ = model.decode(x, positions, attend, features=features, image_index=image_index)
        return hidden @ model.head_weight().T

    return np.asarray(forward(params))[0]


def test_the_folder_holds_all_that_a_checkpoint_needs(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "model.safetensors",
    }
    config = ModelConfig.from_folder(folder)
    assert config.text.vocab_size == 320 and config.text.mrope_section == (4, 2, 2)
    assert config.vision.deepstack_layers == (0, 2) and config.tie_word_embeddings


def test_the_same_seed_gives_the_same_files_and_another_seed_other_weights(folder, tmp_path):
    again = build_policy(tmp_path / "again", SMALL, seed=3, corpus=CORPUS)
    other = build_policy(tmp_path / "other", SMALL, seed=4, corpus=CORPUS)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
        assert (path.read_bytes() == (other / path.name).read_bytes()) == (path.name != "model.safetensors")


def test_a_new_policy_has_no_opinion_yet(folder):
    logits = our_logits(folder, picture_prompt(folder))
    assert np.isfinite(logits).all()
    assert logits.std() < 2
    assert (logits.max(axis=-1) - logits.mean(axis=-1)).max() < 8


@pytest.mark.parametrize("head_dim", [8, 16, 32, 64, 80, 128])
def test_rotary_shares_follow_qwen3_vl(head_dim):
    section = mrope_section(head_dim)
    assert sum(section) == head_dim // 2 and min(section) > 0
    assert 3 * section[1] <= head_dim // 2
    assert head_dim != 128 or section == [24, 20, 20]


@pytest.mark.parity
@pytest.mark.parametrize("tie", [True, False])
def test_transformers_opens_the_folder_and_gives_the_same_logits(tmp_path, tie):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = build_policy(tmp_path, dataclasses.replace(SMALL, tie_embeddings=tie), seed=1, corpus=CORPUS)
    assert type(transformers.AutoConfig.from_pretrained(folder)).__name__ == "Qwen3VLConfig"
    model, info = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    prompt = picture_prompt(folder)
    processor = Processor.from_folder(folder)
    values = normalise(prompt.patches, processor.image_mean, processor.image_std)
    types = np.where(prompt.token_ids == processor.image_token_id, 1, 0)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(prompt.token_ids[None].astype(np.int64)),
            mm_token_type_ids=torch.from_numpy(types[None]),
            pixel_values=torch.from_numpy(values),
            image_grid_thw=torch.from_numpy(prompt.grids.astype(np.int64)),
        ).logits[0].numpy()  # fmt: skip
    np.testing.assert_allclose(our_logits(folder, prompt), theirs, atol=1e-4, rtol=0)


@pytest.mark.real_data
def test_a_policy_can_take_over_a_real_tokenizer(shared, tmp_path):
    source = shared / "assets" / "Qwen3-VL-4B-Instruct"
    build = dataclasses.replace(SMALL, tokenizer=str(source))
    write_policy_files(tmp_path, build)
    processor = Processor.from_folder(tmp_path)
    assert processor.vocab_size == 151936 and processor.image_token_id == 151655
    assert processor.image_settings.min_pixels == 65536
    config = ModelConfig.from_folder(tmp_path)
    assert config.text.vocab_size == 151936 and config.vision_start_token_id == 151652
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == json.loads((source / "generation_config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "nowhere"}, "nowhere is no folder"),
        ({"vocab_size": 100}, "vocab_size=100"),
        ({"vision_positions": 35}, "35"),
        ({"deepstack_layers": (1, 9)}, "9"),
        ({"num_kv_heads": 3}, "3"),
        ({"min_pixels": 9000, "max_pixels": 4096}, "max_pixels=4096"),
    ],
)
def test_sizes_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        build_policy(tmp_path, dataclasses.replace(SMALL, **change), seed=0, corpus=CORPUS)


def test_a_tokenizer_folder_without_qwens_tokens_or_preprocessor_is_named(folder, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    build = dataclasses.replace(SMALL, tokenizer=str(source))
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json"):
        write_policy_files(tmp_path / "out", build)
    (source / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    with pytest.raises(UserError, match="has no tokenizer"):
        write_policy_files(tmp_path / "out", build)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] != "<|video_pad|>"]
    (source / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"lacks <\|video_pad\|>"):
        write_policy_files(tmp_path / "out", build)
