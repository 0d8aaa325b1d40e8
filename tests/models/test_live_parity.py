"""Logits and gradients against transformers itself, for small random models of every family and of odd sizes.

Each case makes a model, saves it as transformers does, and reads the folder back; positions, patches and windows are
worked out by either side on its own.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hf_configs import hf_config

from vero_jax.checkpoints.weights import disk_tensors, load_params, to_disk
from vero_jax.data.geometry import mrope_positions
from vero_jax.models.attention import shared_prefix_attention
from vero_jax.models.config import ModelConfig
from vero_jax.models.inputs import VisionInputs
from vero_jax.models.policy import ModelDef

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

VOCAB, IMAGE, VIDEO, START, END = 128, 120, 121, 122, 123
TOKENS, PATCHES = 64, 112
"""Rows are padded to these, so that cases of one model share a program."""
CLASSES = {
    "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
    "qwen3_vl_moe": ("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration"),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
}
PICTURES = ((1, 4, 6), (1, 6, 2))


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes by transformers' own names; what is not said is as in `text_config` and `vision_config`."""

    family: str
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vision: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tie: bool = False
    pictures: tuple[tuple[int, int, int], ...] = PICTURES


EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
CASES = {
    "heads wider than the model, one tap": Case("qwen3_vl", {"head_dim": 24}),
    "no tap": Case("qwen3_vl", vision={"deepstack_visual_indexes": []}, tie=True),
    "as many taps as layers but one": Case("qwen3_vl", vision={"deepstack_visual_indexes": [0, 2]}),
    "a key-value head per head": Case("qwen3_vl", {"num_key_value_heads": 4}, tie=True),
    "one key-value head": Case("qwen3_vl", {"num_key_value_heads": 1}),
    "every second layer sparse": Case("qwen3_vl_moe", EXPERTS | {"num_hidden_layers": 4, "decoder_sparse_step": 2}),
    "some layers dense": Case("qwen3_vl_moe", EXPERTS | {"num_hidden_layers": 4, "mlp_only_layers": [0, 2]}),
    "width twice the experts'": Case("qwen3_vl_moe", EXPERTS | {"moe_intermediate_size": 16}),
    "width that of the experts": Case("qwen3_vl_moe", EXPERTS | {"moe_intermediate_size": 32}),
    "one expert a token": Case("qwen3_vl_moe", EXPERTS | {"num_experts_per_tok": 1}, tie=True),
    "many experts": Case("qwen3_vl_moe", EXPERTS | {"num_experts": 40, "num_experts_per_tok": 5}),
    "windows that fit": Case("qwen2_5_vl", pictures=((1, 8, 8),)),
    "windows cut off at the edges": Case("qwen2_5_vl", pictures=((1, 6, 10),)),
    "several pictures with windows": Case("qwen2_5_vl", pictures=((1, 6, 6), (1, 4, 8), (1, 2, 10))),
    "a window larger than the picture": Case("qwen2_5_vl", vision={"window_size": 64}, pictures=((1, 6, 4),)),
    "whole frames everywhere": Case("qwen2_5_vl", vision={"fullatt_block_indexes": [0, 1, 2]}, tie=True),
    "MiMo's numbers": Case("qwen2_5_vl", {"rms_norm_eps": 1e-5, "rope_theta": 640000.0, "num_key_value_heads": 1}),
    "text of Qwen3": Case("qwen3", {"head_dim": 24}, pictures=()),
    "text of Qwen3, tied": Case("qwen3", tie=True, pictures=()),
    "text of Qwen2": Case("qwen2", pictures=()),
    "text of Qwen2, tied": Case("qwen2", tie=True, pictures=()),
}
names = pytest.mark.parametrize("name", CASES)


def text_config(spec: Case) -> dict[str, Any]:
    given = dict(spec.text)
    section = [4, 2, 2] if given.get("head_dim", 16) == 16 else [6, 3, 3]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": given.pop("rope_theta", 20000.0)}
    if spec.family.startswith("qwen3_vl"):
        rope |= {"mrope_section": section, "mrope_interleaved": True}
    elif spec.family == "qwen2_5_vl":
        rope |= {"mrope_section": [2, 1, 1]}
    base = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "rope_parameters": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    return base | ({"head_dim": 16} if spec.family.startswith("qwen3") else {}) | given


def vision_config(spec: Case) -> dict[str, Any]:
    base = {
        "depth": 3,
        "hidden_size": 24,
        "num_heads": 2,
        "intermediate_size": 36,
        "out_hidden_size": 32,
        "patch_size": 4,
    }
    if spec.family == "qwen2_5_vl":
        base |= {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    else:
        base |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [1]}
    return base | dict(spec.vision)


def build(spec: Case) -> Any:
    """The model of transformers, with weights that all matter."""
    config_name, model_name = CLASSES[spec.family]
    text = text_config(spec)
    if spec.pictures:
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
        ids |= {"vision_end_token_id": END, "tie_word_embeddings": spec.tie}
        text.pop("tie_word_embeddings", None)
        config = getattr(transformers, config_name)(text_config=text, vision_config=vision_config(spec), **ids)
    else:
        config = getattr(transformers, config_name)(**text, tie_word_embeddings=spec.tie)
    model = getattr(transformers, model_name)(config)
    model.set_attn_implementation("eager")
    if spec.family == "qwen3_vl_moe":
        model.set_experts_implementation("eager")
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = rng.standard_normal(tuple(parameter.shape))
            if name.endswith("bias"):
                value = 0.1 * noise
            elif parameter.ndim == 1:
                value = 1 + 0.25 * noise
            elif "pos_embed" in name:
                value = 0.6 * noise
            elif "embed_tokens" in name or "lm_head" in name:
                value = 3.0 * noise * parameter.shape[1] ** -0.5
            else:
                inputs = np.prod(parameter.shape[1:]) if "patch_embed" in name else parameter.shape[-1]
                value = (2.0 if "mlp.gate.weight" in name else 1.2) * noise * inputs**-0.5
            parameter.copy_(torch.from_numpy(value))
    model.tie_weights()
    return model.eval()


def inputs(spec: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of one row, grids, and pixel values in the order of the processor."""
    rng = np.random.default_rng(7)
    counts = [frames * height * width // 4 for frames, height, width in spec.pictures]
    parts = [rng.integers(3, 110, 5)]
    for count in counts:
        parts += [[START], [IMAGE] * count, [END], rng.integers(3, 110, 4)]
    parts.append(rng.integers(3, 110, 8))
    pixels = rng.uniform(-2, 2, (4 * sum(counts), 3 * 2 * 4 * 4)).astype(np.float32)
    return np.concatenate(parts).astype(np.int64), np.asarray(spec.pictures, np.int64).reshape(-1, 3), pixels


def run_theirs(model: Any, spec: Case) -> Any:
    """Logits 'T V'; in the model's own type."""
    ids, grids, pixels = inputs(spec)
    batch: dict[str, Any] = {"input_ids": torch.from_numpy(ids)[None], "use_cache": False}
    if len(grids):
        batch["image_grid_thw"] = torch.from_numpy(grids)
        batch["pixel_values"] = torch.from_numpy(pixels).to(model.dtype)
        batch["mm_token_type_ids"] = torch.from_numpy((ids == IMAGE).astype(np.int64))[None]
    return model(**batch).logits[0]


def padded(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """One row of a batch."""
    assert len(values) <= length
    return np.pad(values, [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1), constant_values=fill)[None]


def our_inputs(config: ModelConfig, spec: Case) -> tuple[Any, ...]:
    ids, grids, pixels = inputs(spec)
    scales = np.ones(len(grids)) if config.vision is not None and config.vision.window else None
    positions, index = mrope_positions(ids, grids, image_token_id=config.image_token_id, time_scales=scales)
    vision = None
    if len(grids):
        arranged = config.patch_layout.arrange(grids)
        index = np.where(index >= 0, arranged.places[np.maximum(index, 0)], -1)
        columns = [pixels[arranged.order], arranged.coords, arranged.sizes, arranged.segments]
        columns += [] if arranged.windows is None else [arranged.windows]
        vision = VisionInputs(*(padded(column, PATCHES) for column in columns))
    groups = padded(np.ones(len(ids), np.int32), TOKENS)
    tokens = padded(ids.astype(np.int32), TOKENS), padded(positions.astype(np.int32), TOKENS)
    return *tokens, groups, padded(index.astype(np.int32), TOKENS, -1), vision


def our_logits(model_def: ModelDef, params: Any, arrays: tuple[Any, ...]) -> jax.Array:
    ids, positions, groups, index, vision = arrays
    model = model_def.bind(params)
    features = None if vision is None else model.encode_images(vision)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return shared_prefix_attention(q, k, v, groups, jnp.zeros_like(groups), 24), None

    hidden, _ = model.decode(model.embed(ids, features, index), positions, attend, None, features, index)
    return (hidden @ model.head_weight().T)[0]


run_ours = jax.jit(our_logits, static_argnums=0)


def load(folder: Path) -> tuple[ModelDef, Any]:
    model_def = ModelDef(ModelConfig.from_folder(folder))
    return model_def, load_params(folder, model_def)


def hub_name(spec: Case, name: str) -> str:
    """Qwen2.5-VL's files leave out what later versions put in front of its modules."""
    if spec.family != "qwen2_5_vl":
        return name
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


@names
def test_logits(name: str, tmp_path: Path) -> None:
    spec = CASES[name]
    model = build(spec)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = run_theirs(model, spec).numpy()
        exact = run_theirs(copy.deepcopy(model).double(), spec).float().numpy()
    noise = float(np.abs(wanted - exact).max())
    model_def, params = load(tmp_path)
    found = np.asarray(run_ours(model_def, params, our_inputs(model_def.config, spec)))[: len(wanted)]
    assert wanted.std() > 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=max(1.5e-4, 3 * noise))


@pytest.mark.parametrize("name", ["as many taps as layers but one", "windows cut off at the edges"])
def test_gradients_of_the_loss(name: str, tmp_path: Path) -> None:
    spec = CASES[name]
    model = build(spec)
    model.save_pretrained(tmp_path)
    ids = inputs(spec)[0]
    targets, sources = ids[-8:], slice(len(ids) - 9, len(ids) - 1)
    loss = torch.nn.functional.cross_entropy(run_theirs(model, spec)[sources], torch.from_numpy(targets))
    loss.backward()
    model_def, params = load(tmp_path)
    arrays = our_inputs(model_def.config, spec)

    def our_loss(params: Any) -> jax.Array:
        table = jax.nn.log_softmax(our_logits(model_def, params, arrays)[sources])
        return -jnp.take_along_axis(table, targets[:, None], axis=-1).mean()

    value, gradients = jax.jit(jax.value_and_grad(our_loss))(params)
    assert abs(float(value) - loss.item()) <= 1e-5 * loss.item()
    flat = flatten_dict(gradients)
    found = {where: to_disk(flat, pieces) for where, pieces in disk_tensors(model_def).items()}
    wanted = {hub_name(spec, where): parameter.grad.numpy() for where, parameter in model.named_parameters()}
    largest = max(np.linalg.norm(gradient) for gradient in wanted.values())
    assert set(found) == set(wanted)
    for where, gradient in wanted.items():
        # What is zero in exact arithmetic (the gradient of the keys' biases) is noise on both sides.
        scale = max(np.linalg.norm(gradient), 1e-3 * largest)
        assert np.linalg.norm(found[where] - gradient) <= 1e-4 * scale, where


@pytest.mark.parametrize(
    "name", ["as many taps as layers but one", "width twice the experts'", "windows that fit", "text of Qwen2"]
)
def test_the_hubs_spelling_gives_the_same_parameters(name: str, tmp_path: Path) -> None:
    spec = CASES[name]
    model = build(spec)
    model.save_pretrained(tmp_path / "saved")
    model_def, params = load(tmp_path / "saved")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(hf_config(model_def.config)))
    tensors = {}
    for where, parameter in model.named_parameters():
        value = parameter.detach()
        if ".experts." in where:
            value = value.transpose(1, 2)  # the hub's files hold (expert, in, out)
        tensors[hub_name(spec, where)] = value.contiguous().clone()
    safetensors_torch.save_file(tensors, hub / "model.safetensors", metadata={"format": "pt"})
    again, other = load(hub)
    assert again.config == model_def.config
    jax.tree.map(np.testing.assert_array_equal, params, other)
