"""One typed tree of settings: defaults here, a YAML file with what differs, `a.b.c=value` on the command line.

Every section is a frozen dataclass. config_loader.py reads settings into this tree, config_checks.py says whether they
work together; the comment beside a key is its line in `--help`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from vero_jax.types import DOMAINS


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """How to write a new, randomly initialised policy as a Hugging Face folder (when `model.path` is `build`)."""

    tokenizer: str = "mini"  # "mini" (built offline), or a folder with a tokenizer, chat template and preprocessor
    vocab_size: int = 1024  # of the built tokenizer; a folder's own vocabulary wins
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    ffn_size: int = 384
    rope_theta: float = 5_000_000.0  # Qwen3-VL's; short prompts learn faster with a smaller one
    tie_embeddings: bool = True
    vision_hidden_size: int = 128
    vision_depth: int = 4
    vision_heads: int = 4
    vision_ffn_size: int = 384
    vision_positions: int = 256  # entries of the learned position table, a square number
    deepstack_layers: tuple[int, ...] = (1, 2)  # vision blocks whose output is added to the first language layers
    min_pixels: int = 1024  # image area limits written to the preprocessor, in pixels; ignored with a folder tokenizer
    max_pixels: int = 65536
    image_mean: tuple[float, float, float] = (0.9, 0.9, 0.9)  # of the built-in pictures: mostly bright background,
    image_std: tuple[float, float, float] = (0.25, 0.25, 0.25)  # which becomes nearly 0; a folder brings its own


@dataclasses.dataclass(frozen=True)
class LoRASettings:
    """Low-rank adapters (arXiv:2106.09685): small matrices beside linear maps are trained, all else is frozen."""

    rank: int = 0  # of an adapter; 0: no adapters, the weights themselves are trained
    alpha: float = 32.0  # an adapter's part is multiplied by alpha / rank
    targets: tuple[str, ...] = (  # linear maps of the language model that get one; all of them by default
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    path: str = ""  # a PEFT folder to go on from, of the same rank, alpha and targets; empty: new adapters
    export: Literal["merged", "adapter"] = "merged"  # whole weights with the adapters added, or a PEFT folder


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    path: str = "build"  # a Hugging Face folder, a hub id, a vero_jax folder, or "build": write and load a new policy
    build: BuildConfig = BuildConfig()
    lora: LoRASettings = LoRASettings()
    dtype: Literal["float32", "bfloat16"] = "float32"  # activations
    param_dtype: Literal["float32", "bfloat16"] = "float32"  # master weights and optimizer state
    freeze_vision: bool = False  # the tower is frozen in any case where model.lora.rank is not 0
    # what a layer keeps for the backward pass, from fast to small: all ("none"), the outputs of linear maps and of
    # attention ("products"), its input alone ("layers")
    remat: Literal["none", "products", "layers"] = "products"


@dataclasses.dataclass(frozen=True)
class MiniConfig:
    """The built-in data set `vero_mini`."""

    train_size: int = 6000
    val_size: int = 360
    seed: int = 18


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Which training questions are drawn, and how often. Every batch has the same number of each domain."""

    # given: data.domain_weights; rows: each row alike; else a measure ** a: 1 - accuracy, image area, answer length
    weighting: Literal["given", "rows", "difficulty", "area", "length"] = "given"  # of the domains; see docs/data.md
    max_ratio: float = 1.6  # a measure's exponent a makes the largest weight this many times the smallest
    measures: dict[str, float] = dataclasses.field(default_factory=dict)  # by domain: accuracy (0 to 1), or length
    domains: tuple[str, ...] = ()  # only these; empty: all
    leave_out: tuple[str, ...] = ()  # domains
    sources: tuple[str, ...] = ()  # only these names of data_source; empty: all
    leave_out_sources: tuple[str, ...] = ()
    rotate: bool = False  # places of a batch that do not divide go round; False: always to the first domains
    order: Literal["own", "reference"] = "own"  # "reference" draws the very batches of the reference's sampler


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = "vero_mini"  # the built-in set, a hub id, a folder or file of rows, or a folder that was prepared
    cache_dir: str = "~/.cache/vero_jax"  # where prepared ArrayRecord files and compiled programs are kept
    train_split: str = "train"
    val_split: str = "val"
    mini: MiniConfig = MiniConfig()
    domain_weights: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(DOMAINS, 1.0))
    mixture: MixtureConfig = MixtureConfig()
    seed: int = 18  # order of the training questions
    max_prompt_length: int = 18432  # tokens, images included; longer prompts are dropped and counted
    min_pixels: int | None = None  # image area limits; None: the checkpoint's preprocessor_config.json
    max_pixels: int | None = None
    system_prompt: str = "think_answer"  # built-in name, .txt file or text, put before the conversation; empty: none
    coordinates: Literal["auto", "normalized_1000", "pixels"] = "auto"  # what the policy's boxes and points mean
    background: Literal["white", "reference"] = "white"  # transparent pixels on white, or alpha dropped
    workers: int = 0  # Grain worker processes; 0 reads in threads of this process
    read_ahead_mb: int = 1024  # memory of the questions that are ready before they are asked for, in all workers
    max_val_examples: int | None = None
    val_holdout: float = 0.02  # share of the training rows that validation takes where the data has no rows for it


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen. temperature 0 is greedy; top_p 1, top_k -1, min_p 0, penalties of 0 and 1 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0  # taken from the logits of tokens that the response holds
    frequency_penalty: float = 0.0  # the same, times how often
    repetition_penalty: float = 1.0  # divides the logits of tokens in prompt or response (positive ones)

    @property
    def truncates(self) -> bool:
        """Whether some tokens are ruled out because they are unlikely."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def has_penalties(self) -> bool:
        """Whether what was drawn before changes what is drawn next."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    n: int = 8  # responses per prompt
    sampling: SamplingConfig = SamplingConfig()
    max_response_length: int = 18432  # tokens, the stop token included
    concurrent_responses: int = 256  # drawn side by side, over all devices
    prompt_buckets: tuple[int, ...] = (2048, 4096, 8192, 18432)  # padded prompt lengths, in tokens
    patch_buckets: tuple[int, ...] = (4096, 16384, 65536)  # padded vision patches per prompt
    prefill_tokens: int = 16384  # prompt tokens that a device reads together, padding included
    prefill_chunk: int = 4096  # longer prompts are read in chunks of so many tokens
    prompt_page: int = 128  # tokens of a page of prompt keys
    response_page: int = (
        64  # tokens of a page of response keys, and the most that are drawn between two looks of the host
    )
    prompt_kv_tokens: int | None = None  # prompt tokens whose keys are held at a time; None: by the buckets
    response_kv_tokens: int | None = None  # response tokens, likewise; None: half the limit for each
    oversize: Literal["error", "drop"] = "error"  # a prompt that fits no bucket: stop, or leave it out and count it
    vocab_block: int = 16384  # vocabulary entries per block of the output head
    attention_block: int = 512  # query tokens per block


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """Advantages and KL (spec names follow verl)."""

    adv_estimator: Literal[
        "grpo",
        "grpo_vectorized",
        "grpo_passk",
        "dr_grpo",
        "rloo",
        "opo",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "gpg",
    ] = "grpo"
    norm_adv_by_std: bool = True
    kl_in_reward: bool = False
    kl_penalty: Literal["k1", "kl", "abs", "k2", "mse", "k3", "low_var_kl"] = "k1"
    kl_coef: float = 0.0
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    kl_target: float = 0.1
    kl_horizon: int = 10000
    strict_reference: bool = False  # reproduce the reference's defects (rounding noise of all-equal groups, ...)


@dataclasses.dataclass(frozen=True)
class ActorConfig:
    loss_mode: Literal["gspo", "vanilla", "cispo", "geo_mean", "gpg", "clip_cov", "kl_cov"] = "gspo"
    loss_agg_mode: Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = (
        "seq-mean-token-mean"
    )
    clip_ratio_low: float = 3e-4
    clip_ratio_high: float = 4e-4
    clip_ratio_c: float = 10.0  # dual clip, "vanilla" only
    clip_cov_ratio: float = 2e-4
    clip_cov_lb: float = 1.0
    clip_cov_ub: float = 5.0
    kl_cov_ratio: float = 2e-4
    kl_cov_coef: float = 1.0
    # truncated importance weights of the sampler's policy, exp(old - sampler), of each token or of the whole response
    rollout_is: Literal["none", "token", "sequence"] = "none"
    rollout_is_cap: float = 2.0  # the most that a weight may be
    entropy_coef: float = 0.0
    kl_loss_coef: float = 0.0
    kl_loss_type: Literal["k1", "kl", "abs", "k2", "mse", "k3", "low_var_kl"] = "low_var_kl"
    mini_batch_prompts: int = 128  # prompts per optimizer update
    ppo_epochs: int = 1
    # old log-probabilities: of the first mini-batch from its own forward pass and of others recomputed before the first
    # update; or the sampler's own, without another pass; or recomputed for all
    old_logprobs: Literal["first_pass", "sampler", "recompute"] = "first_pass"
    mask_truncated: bool = False  # leave answers that hit the length limit out of the loss
    row_length: int = 36864  # tokens of a learner's row
    row_patches: int = 65536  # vision patches of a learner's row
    rows_per_micro_batch: int = 1  # rows per device of the data axes in one forward and backward pass
    row_rungs: int = 3  # lengths that rows may have: row_length, a half, a quarter, ...; each has programs of its own
    oversize: Literal["error", "drop"] = "error"  # a response that fits no row: stop, or leave it out and count it


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 40  # global steps; step 1 has learning rate 0, as in the reference
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr_ratio: float = 0.0  # floor of the cosine schedule, as a share of lr
    grad_clip: float = 1.0
    offload: bool = False  # keep the optimizer state in the host's memory, and move it to the device for each update


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The judge model's server, any that speaks OpenAI's chat API (where `reward.judge` is `openai`)."""

    base_url: str = "http://127.0.0.1:8000/v1"  # address up to /v1; never with a key in it
    model: str = ""  # name that the server knows; empty: the only one that it lists
    api_key_env: str = ""  # NAME of the environment variable that holds the key; empty: the server needs none
    prompt: str = ""  # your own prompt file with {output}, {input}, {label} and {fence}; empty: the built-in one
    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20  # -1 leaves it to the server
    min_p: float = 0.0
    presence_penalty: float = 1.5
    frequency_penalty: float = 1.0
    max_tokens: int = 1024
    extra_body: str = '{"chat_template_kwargs": {"enable_thinking": false}}'  # JSON object, more fields of each request
    json_mode: Literal["auto", "off"] = "auto"  # ask for JSON, unless the server refuses to be asked
    timeout_s: float = 150.0  # for one request; a response is given up after three times that
    max_retries: int = 6  # after a failure that may pass: no connection, timeout, 408, 409, 425, 429, 5xx
    concurrency: int = 64  # requests at a time
    scale: Literal["0_to_1", "minus1_to_1", "raw"] = "0_to_1"  # from 1..10: (s - 1) / 9, (s - 5.5) / 4.5, or s
    gate_format: bool = False  # format 0 takes the judge's part too; False as the reference
    cache: bool = True  # equal questions with equal answers are judged once, in all runs
    cache_dir: str = ""  # folder of the judgements; empty: <data.cache_dir>/judge
    sleep: Literal["auto", "never"] = "auto"  # wake the server before, put it to sleep after, if it offers that (vLLM)
    max_missing_share: float = 0.5  # a larger share of failures among the latest judged responses stops the run


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    format_weight: float = 0.2  # reward = (1 - w) accuracy + w format
    overlong_buffer: int = 2048  # tokens before the length limit in which the penalty grows; 0 turns it off
    overlong_factor: float = 1.0
    overlong_max_length: int | None = None  # None: rollout.max_response_length
    overlong_floor: bool = True  # the penalty never falls below -factor; False as the reference
    instruction_weight: float = 0.5  # share of the rule check where a judge scores too
    judge: Literal["none", "openai"] = "none"  # "none" drops questions that need a judge, and says how many
    strict_reference: bool = False  # the reference's verifier behaviour where ours is better by default
    workers: int = 2
    timeout_s: float = 5.0  # per response
    max_missing_share: float = 0.2  # a step with a larger share of failed rewards stops the run
    functions: tuple[str, ...] = ()  # your own rewards of all rows, "path/to/file.py:function=weight"
    custom: str = ""  # your own scorer of the reward type "custom": "path/to/file.py:function"
    custom_types: tuple[str, ...] = ()  # more of them: "reward_type=path/to/file.py:function"
    judge_server: JudgeConfig = JudgeConfig()


@dataclasses.dataclass(frozen=True)
class ColdStartConfig:
    """Supervised steps on the reference solutions before reinforcement; 0 steps turns the stage off."""

    steps: int = 0
    batch_size: int = 64  # questions per step
    max_solution_length: int | None = None  # tokens; longer ones are left out. None: rollout.max_response_length
    lr: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.01
    schedule: Literal["constant", "cosine"] = "cosine"
    log_every: int = 10


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    steps: int = 4000
    prompts_per_step: int = 256
    val_before: bool = True
    val_every: int = 40  # 0: only before and at the end
    val_batch: int = 512
    val_sampling: SamplingConfig = SamplingConfig(temperature=0.7)
    val_greedy: bool = True  # measure the greedy answers too
    val_blind: bool = True  # measure how many answers change when the images are blanked
    val_tasks: tuple[str, ...] = ()  # VeroEval benchmarks that validation asks, too: chartqa, stem, or veroeval for all
    val_tasks_dir: str = ""  # folder of their data sets, see docs/evaluation.md
    val_tasks_limit: int = 50  # questions of each, spread evenly over its data set; 0: all of them
    val_tasks_variant: str = ""  # how they are asked; empty: reasoning_samplingq3 for Qwen3-VL, reasoning for others
    save_every: int = 40
    keep_checkpoints: int = 2  # the newest ones
    keep_best: int = 1  # and those that are best in a validation of just these weights
    keep_best_by: str = "val/accuracy"  # the metric of validation that says so: val/stem/accuracy, val/chartqa/score
    checkpoint_dir: str = ""  # of the checkpoints, a folder or gs://bucket/path, {name} allowed; empty: in run_dir
    max_bad_updates: int = 5  # in a row whose gradient is not finite: the run stops; 0: it never does
    save_bad_batches: int = 3  # of such updates, kept in the run's folder for python -m vero_jax.replay
    samples_every: int = 20  # steps between sample pages
    log_every: int = 1
    export: bool = True
    resume: Literal["auto", "never"] = "auto"
    warm_up: bool = False  # compile every program before the first step; else each when it is first needed
    log_with: tuple[str, ...] = ("tensorboard",)  # of: tensorboard, wandb


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what is left. Rows and groups are split over data x fsdp x expert."""

    data: int = -1
    fsdp: int = 1  # weights and optimizer state are split over it, too
    tensor: int = 1  # heads, MLPs and the vocabulary
    expert: int = 1  # as fsdp, and each device holds its share of the experts of a mixture; a divisor of their number


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes as one run, one to a host, each started with the same command; docs/pods.md."""

    mode: Literal["auto", "manual", "off"] = "auto"  # TPU slices, Slurm and Open MPI are found; or by the next three
    coordinator: str = ""  # host:port of process 0
    num_processes: int = 0
    process_id: int = -1  # of this host, from 0
    timeout_s: float = 300.0  # for all to find each other
    peer_timeout_s: float = 30.0  # of silence of a process, after which the others end


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"
    seed: int = 0
    run_dir: str = "runs/{name}"
    model: ModelSettings = ModelSettings()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    actor: ActorConfig = ActorConfig()
    optim: OptimConfig = OptimConfig()
    reward: RewardConfig = RewardConfig()
    cold_start: ColdStartConfig = ColdStartConfig()
    trainer: TrainerConfig = TrainerConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
