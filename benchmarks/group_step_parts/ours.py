"""vero_jax's side, one work per process: `python -m group_step_parts.ours WORK [--toy]` prints a line of JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import jax
import numpy as np
from PIL import Image

from group_step_parts.works import POLICY, TOY, WORKS, Work, picture, reward
from vero_jax.config import ActorConfig, AlgorithmConfig, MeshConfig, OptimConfig, RolloutConfig, SamplingConfig
from vero_jax.data.geometry import merged_counts, mrope_positions
from vero_jax.data.images import ImageSettings, StillImage
from vero_jax.learning.advantages import add_advantages
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.parallel.trace_guard import TraceGuard
from vero_jax.sampling.engine import Engine
from vero_jax.types import Example, Group, Prompt, Score

IMAGE, VIDEO = 3, 4
IMAGES = ImageSettings(16, 2, 2, min_pixels=1024, max_pixels=2**22, mean=(0.5,) * 3, std=(0.5,) * 3)


def policy(sizes: dict[str, Any], dtype: str = "float32") -> ModelDef:
    """The same sizes as the peer's, random weights."""
    text = TextConfig(
        vocab_size=sizes["vocab"], hidden_size=sizes["hidden"], num_layers=sizes["layers"], num_heads=sizes["heads"],
        num_kv_heads=sizes["kv_heads"], head_dim=sizes["head_dim"], ffn_size=sizes["ffn"], rope_theta=5e6,
        mrope_section=sizes["mrope"],
    )  # fmt: skip
    vision = VisionConfig(
        depth=sizes["vision_depth"], hidden_size=sizes["vision_hidden"], num_heads=sizes["vision_heads"],
        ffn_size=sizes["vision_ffn"], out_hidden_size=sizes["hidden"], num_positions=sizes["vision_positions"],
        deepstack_layers=sizes["deepstack"],
    )  # fmt: skip
    config = ModelConfig(
        text=text, vision=vision, image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=1,
        vision_end_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    return ModelDef(config, dtype=dtype)


def prompt(number: int, image: Image.Image, sizes: dict[str, Any], tokens: int) -> Prompt:
    """A picture and text up to the wanted length, as the data pipeline makes it of an opened picture."""
    still = StillImage(image, image.height, image.width, IMAGES)
    patches, grids = still.patches("white"), np.asarray([still.grid], np.int32)
    visual = int(merged_counts(grids)[0])
    rng = np.random.default_rng(number)
    words = rng.integers(6, sizes["vocab"], max(tokens - visual - 2, 1))
    ids = np.asarray([1, *[IMAGE] * visual, 2, *words], np.int32)
    positions, image_index = mrope_positions(ids, grids, image_token_id=IMAGE, video_token_id=VIDEO)
    example = Example(f"q{number}", "chart_ocr", "bench", (), (), "", "", {})
    return Prompt(example, ids, positions, image_index, patches, grids)


class Bench:
    """The engine and the learner as `vero_jax.train` makes them."""

    def __init__(self, work: Work, sizes: dict[str, Any], dtype: str = "float32", **rollout: Any) -> None:
        self.work, self.guard = work, TraceGuard()
        model_def, mesh = policy(sizes, dtype), make_mesh(MeshConfig())
        bucket, patches = -(-work.prompt_tokens // 8) * 8, (work.image // 16) ** 2
        settings = RolloutConfig(
            **{
                "n": work.samples,
                "concurrent_responses": work.prompts * work.samples,
                "prompt_buckets": (bucket,),
                "patch_buckets": (patches,),
                "prompt_page": min(128, bucket),
                "response_page": min(64, work.new_tokens),
                "attention_block": work.attention_block,
                "vocab_block": 2048,
            }
            | rollout
        )
        self.engine = Engine(model_def, settings, mesh, stop_ids=[], guard=self.guard)
        row = work.prompt_tokens + work.samples * work.new_tokens
        actor = ActorConfig(
            loss_mode="vanilla",
            loss_agg_mode="token-mean",
            clip_ratio_low=0.2,
            clip_ratio_high=0.2,
            mini_batch_prompts=work.prompts,
            ppo_epochs=work.updates,
            row_length=-(-row // 64) * 64,
            row_patches=patches,
        )
        trainable = TrainablePolicy.of_model(
            model_def, mesh, attention_block=settings.attention_block, vocab_block=settings.vocab_block
        )
        self.learner = Learner(
            trainable, actor, OptimConfig(lr=1e-5, warmup_steps=0), mesh, max_response_length=work.new_tokens,
            guard=self.guard,
        )  # fmt: skip
        self.state = self.learner.init_state(model_def.init_params(0))
        self.sizes = sizes
        self.prompts = self.prepared(self.pictures(0))

    def pictures(self, step: int) -> list[Image.Image]:
        count = self.work.prompts
        return [picture(self.work.image, number) for number in range(step * count, (step + 1) * count)]

    def prepared(self, pictures: list[Image.Image]) -> list[Prompt]:
        return [prompt(number, image, self.sizes, self.work.prompt_tokens) for number, image in enumerate(pictures)]

    def sample(self, step: int, prompts: list[Prompt] | None = None, limits: Any = None) -> list[Group]:
        work, prompts = self.work, prompts or self.prompts
        found = dict(
            self.engine.generate(
                self.state.params, prompts, n=work.samples, sampling=SamplingConfig(), seed=0, step=step,
                max_new_tokens=work.new_tokens if limits is None else limits,
            )
        )  # fmt: skip
        return [found[index] for index in range(len(prompts))]

    def update(self, groups: list[Group], step: int) -> dict[str, float]:
        scored = []
        for group in groups:
            values = [reward(response.token_ids.tolist()) for response in group.responses]
            scored.append(dataclasses.replace(group, scores=tuple(Score(v, v, 1.0) for v in values)))
        compared = add_advantages(scored, AlgorithmConfig())
        self.state, metrics = self.learner.step(self.state, compared, step)
        jax.block_until_ready(self.state)
        return metrics

    def step(self, number: int) -> dict[str, float]:
        """Seconds of one GRPO step on other pictures, which must be cut into patches, as the peer's must."""
        pictures = self.pictures(number)
        start = time.perf_counter()
        prompts = self.prepared(pictures)
        ready = time.perf_counter()
        groups = self.sample(number, prompts)
        sampled = time.perf_counter()
        self.update(groups, number)
        done = time.perf_counter()
        return {"step": done - start, "preparing": ready - start, "sampling": sampled - ready, "update": done - sampled}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def timed_step(work: Work, sizes: dict[str, Any]) -> dict[str, Any]:
    bench = Bench(work, sizes)
    first = bench.step(1)
    phases = medians([bench.step(number) for number in range(2, 2 + work.repeats)])
    return {"ours_s": phases.pop("step"), "phases": phases | {"first_step": first["step"]}}


def timed_sampling(work: Work, sizes: dict[str, Any]) -> dict[str, Any]:
    bench = Bench(work, sizes)
    bench.sample(0)
    times = []
    for step in range(1, 1 + work.repeats):
        start = time.perf_counter()
        groups = bench.sample(step)
        times.append(time.perf_counter() - start)
    tokens = sum(len(response.token_ids) for group in groups for response in group.responses)
    seconds = statistics.median(times)
    return {"ours_s": seconds, "phases": {"tokens_per_s": tokens / seconds}}


def useful_share(work: Work, sizes: dict[str, Any]) -> dict[str, Any]:
    """64 groups of 8 with log-normal lengths, whose mean is a quarter of the limit; lanes for 16 and for 32 groups."""
    phases = {}
    for sigma in (0.5, 0.8):
        rng = np.random.default_rng(0)
        mean = work.new_tokens / 4
        drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, (work.prompts, work.samples))
        limits = np.clip(np.round(drawn), 1, work.new_tokens).astype(np.int32)
        for groups in (16, 32):
            lanes = max(min(groups, work.prompts) * work.samples, 1)
            bench = Bench(work, sizes, concurrent_responses=lanes, response_page=64)
            bench.sample(0, limits=limits)
            phases[f"share_sigma_{sigma}_lanes_{lanes}"] = bench.engine.stats.useful_share
    return {"ours_s": None, "phases": phases}


def compilations(work: Work, sizes: dict[str, Any]) -> dict[str, Any]:
    """Thirty steps of mixed image sizes and lengths behind the warm-up: how many programs were compiled."""
    count = 0

    def listen(event: str, duration: float, **_: object) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    bucket, patches = -(-work.prompt_tokens // 8) * 8, (work.image // 16) ** 2
    bench = Bench(
        work, sizes, prompt_buckets=(bucket // 2, bucket), patch_buckets=(patches // 16 * 4, patches), response_page=16
    )
    params = bench.state.params
    bench.engine.warm_up(params, n=work.samples, max_new_tokens=work.new_tokens, sampling=SamplingConfig())
    bench.state = bench.learner.warm_up(bench.state)
    bench.step(1)  # whatever is not of the engine or the learner
    warm, rng = count, np.random.default_rng(0)
    for step in range(2, 32):
        prompts = []
        for number in range(work.prompts):
            image = 32 * int(rng.integers(1, work.image // 32 + 1))
            text = int(rng.integers(4, work.prompt_tokens - (work.image // 32) ** 2 - 1))
            drawn = picture(image, 100 * step + number)
            prompts.append(prompt(100 * step + number, drawn, sizes, (image // 32) ** 2 + text))
        limits = rng.integers(1, work.new_tokens + 1, (work.prompts, work.samples)).astype(np.int32)
        limits[0, 0] = work.new_tokens  # the longest decides the shapes of a session
        bench.update(bench.sample(step, prompts, limits), step)
    return {"ours_s": None, "phases": {"warm_up": float(warm), "after_warm_up": float(count - warm)}}


def mismatch(work: Work, sizes: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The sampler's log-probabilities against the learner's, of the same tokens under the same weights."""
    bench = Bench(work, sizes, dtype)
    groups = bench.sample(1)
    learned = bench.learner.logprobs(bench.state.params, groups)
    differences = np.concatenate(
        [
            np.abs(response.logprobs - values)
            for group, found in zip(groups, learned, strict=True)
            for response, values in zip(group.responses, found, strict=True)
        ]
    )
    exps = np.exp(differences)
    phases = {"max_abs": differences.max(), "mean_exp_abs": exps.mean(), "median_exp_abs": np.median(exps)}
    return {"ours_s": None, "phases": {name: float(value) for name, value in phases.items()}}


def update_memory(work: Work, sizes: dict[str, Any]) -> dict[str, Any]:
    """Of the compiled update: scratch bytes, and arrays of [tokens, vocabulary] or [T, T] elements."""
    bench = Bench(work, sizes)
    learner, params = bench.learner, bench.state.params
    plan = learner.pack(bench.sample(1))
    batch = learner._batch(plan, 0)
    compiled = learner.programs.accumulate.lower(params, learner.programs.zeros(), batch).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    _, T, _ = plan.shape
    forbidden = [f"{T},{sizes['vocab']}]", f"{sizes['vocab']},{T}]", f"{T},{T}]"]
    return {
        "ours_s": None,
        "phases": {
            "scratch_mb": memory.temp_size_in_bytes / 1e6,
            "tokens": float(T),
            "forbidden_arrays": float(sum(text.count(shape) for shape in forbidden)),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=sorted(WORKS))
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    work, sizes = WORKS[args.work], POLICY
    if args.toy:
        work, sizes = work.toy(), TOY
    if work.kind == "mismatch":
        found = mismatch(work, sizes, args.work.removeprefix("mismatch_"))
    else:
        measure = {
            "step": timed_step, "sampling": timed_sampling, "useful_share": useful_share,
            "compilations": compilations, "update_memory": update_memory,
        }[work.kind]  # fmt: skip
        found = measure(work, sizes)
    print(json.dumps(found | {"versions": {"jax": jax.__version__}}))


if __name__ == "__main__":
    main()
