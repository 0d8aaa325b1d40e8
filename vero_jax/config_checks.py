"""Checks that settings make sense on their own and together; each failure is one sentence that says what to change."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
import urllib.parse
from collections.abc import Callable, Sequence

from vero_jax.config import BuildConfig, Config, JudgeConfig, LoRASettings, SamplingConfig, TrainerConfig
from vero_jax.errors import UserError
from vero_jax.rewards.custom import split_target
from vero_jax.rewards.settings import BUILTIN, weighted_targets
from vero_jax.types import DOMAINS

GROUP_ESTIMATORS = frozenset(
    {"grpo", "grpo_vectorized", "grpo_passk", "dr_grpo", "rloo", "opo", "reinforce_plus_plus_baseline", "gpg"}
)
"""Advantage estimators that compare the responses of one prompt, so that one response says nothing."""

PATCHES_PER_TOKEN = 4
"""Of all Qwen-VL towers: 2 x 2 patches are merged into a token."""

LOGGERS = ("tensorboard", "wandb")


def validate(config: Config) -> None:
    """Raises UserError for the first setting that cannot work, naming the keys and their values."""
    _check_numbers(config)
    _check_run(config)
    _check_data(config)
    _check_rollout(config)
    _check_batches(config)
    _check_reward(config)
    if config.trainer.val_tasks or config.trainer.keep_best_by != TrainerConfig().keep_best_by:
        from vero_jax.evaluation.in_training import check  # takes a second that most commands need not wait

        check(config)
    if config.reward.judge != "none":
        _check_judge(config.reward.judge_server)
    _check_mesh(config)
    _check_lora(config.model.lora)
    if config.model.path == "build":
        _check_build(config.model.build)


def _need(holds: bool, sentence: str) -> None:
    if not holds:
        raise UserError(sentence)


def _check_numbers(config: Config) -> None:
    """Ranges of single settings."""
    actor, optim, cold, trainer, algorithm = (
        config.actor,
        config.optim,
        config.cold_start,
        config.trainer,
        config.algorithm,
    )
    positive = {
        "actor.clip_ratio_low": actor.clip_ratio_low,
        "actor.clip_ratio_high": actor.clip_ratio_high,
        "actor.ppo_epochs": actor.ppo_epochs,
        "actor.mini_batch_prompts": actor.mini_batch_prompts,
        "actor.row_length": actor.row_length,
        "actor.row_patches": actor.row_patches,
        "actor.rows_per_micro_batch": actor.rows_per_micro_batch,
        "actor.row_rungs": actor.row_rungs,
        "actor.rollout_is_cap": actor.rollout_is_cap,
        "optim.lr": optim.lr,
        "optim.eps": optim.eps,
        "optim.grad_clip": optim.grad_clip,
        "cold_start.batch_size": cold.batch_size,
        "cold_start.lr": cold.lr,
        "cold_start.log_every": cold.log_every,
        "trainer.prompts_per_step": trainer.prompts_per_step,
        "trainer.val_batch": trainer.val_batch,
        "trainer.keep_checkpoints": trainer.keep_checkpoints,
        "trainer.log_every": trainer.log_every,
        "rollout.n": config.rollout.n,
        "rollout.max_response_length": config.rollout.max_response_length,
        "rollout.concurrent_responses": config.rollout.concurrent_responses,
        "rollout.prefill_tokens": config.rollout.prefill_tokens,
        "rollout.prefill_chunk": config.rollout.prefill_chunk,
        "rollout.prompt_page": config.rollout.prompt_page,
        "rollout.response_page": config.rollout.response_page,
        "rollout.vocab_block": config.rollout.vocab_block,
        "rollout.attention_block": config.rollout.attention_block,
        "data.max_prompt_length": config.data.max_prompt_length,
        "reward.workers": config.reward.workers,
        "reward.timeout_s": config.reward.timeout_s,
        "algorithm.kl_target": algorithm.kl_target,
        "algorithm.kl_horizon": algorithm.kl_horizon,
    }
    for key, value in positive.items():
        _need(value > 0, f"{key} must be greater than 0, not {value}.")
    not_negative = {
        "trainer.keep_best": trainer.keep_best,
        "trainer.val_tasks_limit": trainer.val_tasks_limit,
        "trainer.max_bad_updates": trainer.max_bad_updates,
        "trainer.save_bad_batches": trainer.save_bad_batches,
        "seed": config.seed,
        "data.seed": config.data.seed,
        "data.mini.seed": config.data.mini.seed,
        "data.workers": config.data.workers,
        "data.mini.train_size": config.data.mini.train_size,
        "data.mini.val_size": config.data.mini.val_size,
        "optim.weight_decay": optim.weight_decay,
        "optim.warmup_steps": optim.warmup_steps,
        "cold_start.steps": cold.steps,
        "cold_start.warmup_steps": cold.warmup_steps,
        "cold_start.weight_decay": cold.weight_decay,
        "trainer.steps": trainer.steps,
        "trainer.val_every": trainer.val_every,
        "trainer.save_every": trainer.save_every,
        "trainer.samples_every": trainer.samples_every,
        "algorithm.kl_coef": algorithm.kl_coef,
        "actor.kl_loss_coef": actor.kl_loss_coef,
    }
    for key, value in not_negative.items():
        _need(value >= 0, f"{key} must not be negative, but is {value}.")
    shares = {
        "optim.min_lr_ratio": optim.min_lr_ratio,
        "reward.format_weight": config.reward.format_weight,
        "reward.instruction_weight": config.reward.instruction_weight,
        "reward.max_missing_share": config.reward.max_missing_share,
        "actor.clip_cov_ratio": actor.clip_cov_ratio,
        "actor.kl_cov_ratio": actor.kl_cov_ratio,
    }
    for key, value in shares.items():
        _need(0 <= value <= 1, f"{key} must lie between 0 and 1, not {value}.")
    for value in optim.betas:
        _need(0 <= value < 1, f"optim.betas must lie between 0 and 1 (1 excluded), not {list(optim.betas)}.")
    _need(actor.clip_ratio_c > 1, f"actor.clip_ratio_c must be greater than 1, not {actor.clip_ratio_c}.")


def _check_run(config: Config) -> None:
    trainer = config.trainer
    _need(
        re.fullmatch(r"[\w.-]+", config.name) is not None and not config.name.startswith("."),
        f"name must be made of letters, digits, '.', '_' and '-', not {config.name!r}: a folder is named after it.",
    )
    for name in trainer.log_with:
        _need(name in LOGGERS, f"trainer.log_with can name {' and '.join(LOGGERS)}, not {name!r}.")
    # Without steps of reinforcement the schedule is never asked.
    if config.optim.schedule == "cosine" and trainer.steps:
        _need(
            config.optim.warmup_steps < trainer.steps,
            f"optim.warmup_steps ({config.optim.warmup_steps}) must be less than trainer.steps ({trainer.steps}) "
            "with optim.schedule=cosine, which falls between the two.",
        )
    if config.cold_start.schedule == "cosine" and config.cold_start.steps:
        _need(
            config.cold_start.warmup_steps < config.cold_start.steps,
            f"cold_start.warmup_steps ({config.cold_start.warmup_steps}) must be less than cold_start.steps "
            f"({config.cold_start.steps}) with cold_start.schedule=cosine.",
        )


def _check_data(config: Config) -> None:
    data = config.data
    for key in ("domain_weights", "mixture.measures", "mixture.domains", "mixture.leave_out"):
        names = data.domain_weights if key == "domain_weights" else getattr(data.mixture, key.removeprefix("mixture."))
        for name in names:
            near = difflib.get_close_matches(name, DOMAINS, 1, 0.75)
            _need(name in DOMAINS or not near, f"data.{key} names the domain {name!r} (did you mean {''.join(near)}?).")
    for name, weight in data.domain_weights.items():
        _need(weight >= 0, f"data.domain_weights.{name} must not be negative, but is {weight}.")
    _need(sum(data.domain_weights.values()) > 0, "data.domain_weights are all 0: give at least one domain a weight.")
    mixture = data.mixture
    _need(mixture.max_ratio >= 1, f"data.mixture.max_ratio must be at least 1, not {mixture.max_ratio}.")
    if mixture.weighting in ("difficulty", "length"):
        what = "the policy's accuracy" if mixture.weighting == "difficulty" else "the mean length of an answer"
        _need(
            bool(mixture.measures),
            f"data.mixture.weighting={mixture.weighting} needs data.mixture.measures.<domain>: {what} in each domain.",
        )
    for name, measure in mixture.measures.items():
        _need(measure >= 0, f"data.mixture.measures.{name} must not be negative, but is {measure}.")
        if mixture.weighting == "difficulty":
            _need(measure < 1, f"data.mixture.measures.{name} is an accuracy and must be below 1, not {measure}.")
    for key, both in {
        "domains": set(mixture.domains) & set(mixture.leave_out),
        "sources": set(mixture.sources) & set(mixture.leave_out_sources),
    }.items():
        _need(not both, f"data.mixture.{key} names {', '.join(sorted(both))}, which is left out at the same time.")
    _need(
        not (mixture.rotate and mixture.order == "reference"),
        "data.mixture.rotate does nothing with data.mixture.order=reference, whose counts are fixed; set one of them.",
    )
    _need(0 <= data.val_holdout < 1, f"data.val_holdout must lie between 0 and 1 (excluded), not {data.val_holdout}.")
    _need(data.read_ahead_mb > 0, f"data.read_ahead_mb must be greater than 0, not {data.read_ahead_mb}.")
    for key, pixels in {"data.min_pixels": data.min_pixels, "data.max_pixels": data.max_pixels}.items():
        _need(pixels is None or pixels > 0, f"{key} must be greater than 0 or null, not {pixels}.")
    if data.min_pixels is not None and data.max_pixels is not None:
        _need(
            data.min_pixels <= data.max_pixels,
            f"data.min_pixels ({data.min_pixels}) must not exceed data.max_pixels ({data.max_pixels}).",
        )
    _need(
        data.max_val_examples is None or data.max_val_examples > 0,
        f"data.max_val_examples must be greater than 0 or null, not {data.max_val_examples}.",
    )


def _check_sampling(key: str, sampling: SamplingConfig) -> None:
    _need(sampling.temperature >= 0, f"{key}.temperature must not be negative, but is {sampling.temperature}.")
    _need(0 < sampling.top_p <= 1, f"{key}.top_p must lie between 0 (excluded) and 1, not {sampling.top_p}.")
    _need(0 <= sampling.min_p < 1, f"{key}.min_p must lie between 0 and 1 (excluded), not {sampling.min_p}.")
    _need(
        sampling.top_k == -1 or sampling.top_k >= 1,
        f"{key}.top_k must be -1 (off) or at least 1, not {sampling.top_k}.",
    )
    _need(
        sampling.repetition_penalty > 0,
        f"{key}.repetition_penalty must be greater than 0 (1 is off), not {sampling.repetition_penalty}.",
    )


def _check_ladder(key: str, ladder: Sequence[int]) -> None:
    _need(len(ladder) > 0 and min(ladder) > 0, f"{key} must list at least one size greater than 0, not {list(ladder)}.")
    _need(
        all(small < large for small, large in itertools.pairwise(ladder)),
        f"{key} must ascend without repeats, not {list(ladder)}.",
    )


def _check_rollout(config: Config) -> None:
    rollout = config.rollout
    _check_sampling("rollout.sampling", rollout.sampling)
    _check_sampling("trainer.val_sampling", config.trainer.val_sampling)
    _need(
        rollout.sampling.temperature > 0,
        "rollout.sampling.temperature must be greater than 0: greedy answers to one prompt are all alike, and nothing "
        "can be learned from them.",
    )
    _need(
        rollout.n >= 2 or config.algorithm.adv_estimator not in GROUP_ESTIMATORS,
        f"rollout.n must be at least 2, not {rollout.n}: algorithm.adv_estimator={config.algorithm.adv_estimator} "
        "compares the responses to one prompt.",
    )
    _check_ladder("rollout.prompt_buckets", rollout.prompt_buckets)
    _check_ladder("rollout.patch_buckets", rollout.patch_buckets)
    _need(
        rollout.prompt_buckets[-1] >= config.data.max_prompt_length,
        f"the last of rollout.prompt_buckets ({rollout.prompt_buckets[-1]}) must reach data.max_prompt_length "
        f"({config.data.max_prompt_length}), so that every prompt has a bucket.",
    )
    _need(
        rollout.patch_buckets[-1] <= PATCHES_PER_TOKEN * rollout.prompt_buckets[-1],
        f"the last of rollout.patch_buckets ({rollout.patch_buckets[-1]}) is impossible: a prompt has a token for "
        f"every {PATCHES_PER_TOKEN} patches, and rollout.prompt_buckets end with {rollout.prompt_buckets[-1]}.",
    )
    _need(
        rollout.prefill_chunk <= rollout.attention_block or rollout.prefill_chunk % rollout.attention_block == 0,
        f"rollout.prefill_chunk ({rollout.prefill_chunk}) must be a multiple of rollout.attention_block "
        f"({rollout.attention_block}), or smaller.",
    )
    for key, store, least, what in (
        (
            "prompt_kv_tokens",
            rollout.prompt_kv_tokens,
            rollout.prompt_buckets[-1],
            "the last of rollout.prompt_buckets",
        ),
        ("response_kv_tokens", rollout.response_kv_tokens, rollout.max_response_length, "rollout.max_response_length"),
    ):
        _need(
            store is None or store >= least,
            f"rollout.{key} ({store}) must hold at least one of the longest, {what} ({least} tokens).",
        )


def _check_batches(config: Config) -> None:
    """Whether what is sampled can be learned from: mini-batches divide the step, and one branch fits a row."""
    actor, prompts = config.actor, config.trainer.prompts_per_step
    _need(
        prompts % actor.mini_batch_prompts == 0,
        f"actor.mini_batch_prompts ({actor.mini_batch_prompts}) must divide trainer.prompts_per_step ({prompts}).",
    )
    _need(
        actor.rollout_is == "none" or actor.old_logprobs != "sampler",
        f"actor.rollout_is={actor.rollout_is} corrects the sampler's log-probabilities, which "
        "actor.old_logprobs=sampler takes as they are; set one of the two.",
    )
    longest = config.data.max_prompt_length + config.rollout.max_response_length
    _need(
        longest <= actor.row_length,
        f"actor.row_length ({actor.row_length}) must hold one prompt and one response: data.max_prompt_length + "
        f"rollout.max_response_length is {longest}.",
    )
    solution = config.cold_start.max_solution_length
    if solution is not None:
        _need(solution > 0, f"cold_start.max_solution_length must be greater than 0, not {solution}.")
        longest = config.data.max_prompt_length + solution
        _need(
            longest <= actor.row_length,
            f"actor.row_length ({actor.row_length}) must hold one prompt and its solution: data.max_prompt_length + "
            f"cold_start.max_solution_length is {longest}.",
        )
    _need(
        config.rollout.patch_buckets[-1] <= actor.row_patches,
        f"actor.row_patches ({actor.row_patches}) must hold the patches of one prompt, up to the last of "
        f"rollout.patch_buckets ({config.rollout.patch_buckets[-1]}).",
    )


def _check_reward(config: Config) -> None:
    reward = config.reward
    limit = reward.overlong_max_length
    key = "rollout.max_response_length" if limit is None else "reward.overlong_max_length"
    limit = config.rollout.max_response_length if limit is None else limit
    _need(
        0 <= reward.overlong_buffer <= limit,
        f"reward.overlong_buffer ({reward.overlong_buffer}) must lie between 0 (off) and {key} ({limit}).",
    )
    _need(reward.overlong_factor >= 0, f"reward.overlong_factor must not be negative, but is {reward.overlong_factor}.")
    for target in weighted_targets(reward.functions):
        if target != BUILTIN:
            split_target(target, "reward.functions")
    _need(
        not reward.functions or reward.judge == "none",
        f"reward.judge={reward.judge} and reward.functions do not go together: set reward.judge=none and ask the "
        "judge in a function of your own.",
    )


def check_server(base_url: str, api_key_env: str, named: Callable[[str], str]) -> None:
    """Checks the address of a model's server and the variable of its key; `named` is what the user calls a field.

    Raises:
      UserError: one of them is none, or might hold a secret.
    """
    # The value is not repeated: it may hold the very secret that the sentence is about.
    _need(
        not set("@?#") & set(base_url),
        f"{named('base_url')} must hold neither a password nor a query: put the key into an environment variable and "
        f"its name into {named('api_key_env')}.",
    )
    try:
        url = urllib.parse.urlsplit(base_url)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        usable = False
    _need(usable, f"{named('base_url')} must be an address such as http://localhost:8000/v1, not {base_url!r}.")
    _need(
        re.fullmatch(r"([A-Za-z_]\w*)?", api_key_env, re.ASCII) is not None,
        f"{named('api_key_env')} must be the name of an environment variable, such as OPENAI_API_KEY, not the key "
        "itself.",
    )


def _check_judge(judge: JudgeConfig) -> None:
    key = "reward.judge_server"
    check_server(judge.base_url, judge.api_key_env, lambda name: f"{key}.{name}")
    sampling = SamplingConfig(judge.temperature, judge.top_p, judge.top_k, judge.min_p)
    _check_sampling(key, sampling)
    for name in ("timeout_s", "max_tokens", "concurrency"):
        value = getattr(judge, name)
        _need(value > 0, f"{key}.{name} must be greater than 0, not {value}.")
    _need(judge.max_retries >= 0, f"{key}.max_retries must not be negative, but is {judge.max_retries}.")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(judge, name)
        _need(-2 <= value <= 2, f"{key}.{name} must lie between -2 and 2, not {value}.")
    share = judge.max_missing_share
    _need(0 <= share <= 1, f"{key}.max_missing_share must lie between 0 and 1, not {share}.")
    try:
        extra = json.loads(judge.extra_body or "{}")
    except ValueError:
        extra = None
    _need(
        isinstance(extra, dict),
        f"{key}.extra_body must be a JSON object in one text, such as "
        f"{JudgeConfig().extra_body}, not {judge.extra_body!r}.",
    )


def _check_mesh(config: Config) -> None:
    axes = {f"mesh.{name}": size for name, size in vars(config.mesh).items()}
    for key, size in axes.items():
        _need(size == -1 or size >= 1, f"{key} must be -1 (what is left) or at least 1, not {size}.")
    free = [key for key, size in axes.items() if size == -1]
    _need(len(free) <= 1, f"only one axis of the mesh can be -1, not {' and '.join(free)}.")


def _check_lora(lora: LoRASettings) -> None:
    _need(lora.rank >= 0, f"model.lora.rank must be 0 (off) or greater, not {lora.rank}.")
    _need(
        lora.rank > 0 or not lora.path,
        f"model.lora.path={lora.path!r} needs model.lora.rank: set it to the adapter's, the `r` of its "
        "adapter_config.json.",
    )
    _need(lora.alpha > 0, f"model.lora.alpha must be greater than 0, not {lora.alpha}.")
    _need(len(lora.targets) > 0, "model.lora.targets must name at least one linear map, such as q_proj.")
    known = LoRASettings().targets
    for target in lora.targets:
        _need(
            target in known,
            f"model.lora.targets names {target!r}, which is no linear map of the language model: the nearest is "
            f"{difflib.get_close_matches(target, known, 1, 0.0)[0]!r}.",
        )


def _check_build(build: BuildConfig) -> None:
    for name, value in vars(build).items():
        is_size = isinstance(value, int) and not isinstance(value, bool)
        _need(not is_size or value > 0, f"model.build.{name} must be greater than 0, not {value}.")
    _need(
        build.num_heads % build.num_kv_heads == 0,
        f"model.build.num_kv_heads ({build.num_kv_heads}) must divide model.build.num_heads ({build.num_heads}).",
    )
    _need(
        build.head_dim % 2 == 0,
        f"model.build.head_dim must be even, not {build.head_dim}: rotary positions turn pairs of channels.",
    )
    _need(
        build.vision_hidden_size % build.vision_heads == 0
        and (build.vision_hidden_size // build.vision_heads) % 4 == 0,
        f"model.build.vision_hidden_size ({build.vision_hidden_size}) must give each of model.build.vision_heads "
        f"({build.vision_heads}) a multiple of 4 channels, because rows and columns rotate pairs of them.",
    )
    _need(
        math.isqrt(build.vision_positions) ** 2 == build.vision_positions,
        f"model.build.vision_positions must be a square number, not {build.vision_positions}.",
    )
    _need(
        build.min_pixels <= build.max_pixels,
        f"model.build.min_pixels ({build.min_pixels}) must not exceed model.build.max_pixels ({build.max_pixels}).",
    )
    layers = build.deepstack_layers
    _need(
        list(layers) == sorted(set(layers)) and all(0 <= layer < build.vision_depth for layer in layers),
        f"model.build.deepstack_layers must ascend within 0 .. {build.vision_depth - 1} (model.build.vision_depth), "
        f"not {list(layers)}.",
    )
    _need(
        len(layers) <= build.num_layers,
        f"model.build.deepstack_layers lists {len(layers)} blocks, but there are only {build.num_layers} "
        "language layers (model.build.num_layers) to add them to.",
    )
