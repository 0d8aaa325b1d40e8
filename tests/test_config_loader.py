"""Settings: what is read, how it is converted, and the sentence for each mistake."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vero_jax import config_loader
from vero_jax.config import Config
from vero_jax.config_checks import validate
from vero_jax.config_loader import find_config, flatten, help_text, load_config, to_dict, to_yaml
from vero_jax.errors import UserError

REPO = Path(__file__).parents[1]


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """A config file with nothing in it: the recipe's defaults."""
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing differs\n")
    return str(path)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return str(path)


def message(argv: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(argv)
    text = str(caught.value)
    assert text.endswith((".", ")")) and "\n" not in text, text
    return text


def test_defaults_are_the_recipe_and_valid(empty):
    assert load_config([empty]) == Config()


def test_without_a_file_the_mini_run_is_loaded_from_any_folder(tmp_path):
    code = "from vero_jax.config_loader import load_config; print(load_config([]).name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "mini"


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_of_the_repository_loads(path):
    assert load_config([str(path)]).name


def test_file_then_words_and_the_last_word_wins(tmp_path):
    path = write(tmp_path, "name: a\noptim:\n  lr: 1e-5\n  warmup_steps: 3\n")
    config = load_config([path, "optim.lr=2e-5", "optim.lr=3e-5"])
    assert (config.name, config.optim.lr, config.optim.warmup_steps) == ("a", 3e-5, 3)
    assert config.optim.weight_decay == Config().optim.weight_decay


def test_numbers_without_a_dot_are_numbers(tmp_path):
    # PyYAML follows YAML 1.1 and reads 1e-6 as text
    assert load_config([write(tmp_path, "optim: {lr: 1e-6, eps: 1}")]).optim.eps == 1.0
    assert load_config([write(tmp_path, "optim: {lr: 1e-6}")]).optim.lr == 1e-6
    assert load_config([write(tmp_path, "optim: {betas: [9e-1, 0.95]}")]).optim.betas == (0.9, 0.95)


@pytest.mark.parametrize("word", ["[2048,18432]", "2048,18432", " [2048, 18432] "])
def test_lists_on_the_command_line(empty, word):
    assert load_config([empty, f"rollout.prompt_buckets={word}"]).rollout.prompt_buckets == (2048, 18432)


def test_empty_list(empty):
    assert load_config([empty, "trainer.log_with="]).trainer.log_with == ()
    assert load_config([empty, "trainer.log_with=[]"]).trainer.log_with == ()
    assert load_config([empty, "trainer.log_with=tensorboard"]).trainer.log_with == ("tensorboard",)


def test_null_only_where_it_is_meant(empty):
    assert load_config([empty, "data.max_val_examples=5"]).data.max_val_examples == 5
    assert load_config([empty, "data.max_val_examples=5", "data.max_val_examples=null"]).data.max_val_examples is None
    assert "seed (command line) must be a whole number, not null" in message([empty, "seed=null"])


def test_text_on_the_command_line_stays_text(empty):
    assert load_config([empty, "name=123"]).name == "123"
    assert load_config([empty, "data.system_prompt=Think: first, then answer"]).data.system_prompt == (
        "Think: first, then answer"
    )
    assert load_config([empty, 'data.system_prompt="a=b"']).data.system_prompt == "a=b"
    assert load_config([empty, "data.system_prompt=null"]).data.system_prompt == "null"
    assert load_config([empty, "data.system_prompt="]).data.system_prompt == ""


def test_domain_weights_are_set_one_by_one(tmp_path):
    config = load_config([write(tmp_path, "data: {domain_weights: {stem: 2}}"), "data.domain_weights.chart_ocr=0"])
    weights = config.data.domain_weights
    assert (weights["stem"], weights["chart_ocr"], weights["visual_alignment"]) == (2.0, 0.0, 1.0)
    assert Config().data.domain_weights["stem"] == 1.0
    assert "names the domain 'stm' (did you mean stem?)" in message(["data.domain_weights.stm=1"])
    assert "names the domain 'chart_ocd'" in message(["data.mixture.domains=[chart_ocd]"])
    assert load_config(["data.domain_weights.mine=2"]).data.domain_weights["mine"] == 2.0


def test_empty_section_changes_nothing(tmp_path):
    assert load_config([write(tmp_path, "optim:\n  # lr: 1\nname: x\n")]).optim == Config().optim


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("optim.learning_rat=1", "optim."),
        ("lr=1", "optim.lr"),
        ("trainer.step=1", "trainer.steps"),
        ("rolout.n=4", "rollout.n"),
        ("seed.x=4", "seed"),
        ("optim.lr.x=4", "optim.lr"),
        ("zzz=4", "'"),
    ],
)
def test_unknown_key_names_the_nearest(empty, word, nearest):
    text = message([empty, word])
    key = word.partition("=")[0]
    assert f"unknown key '{key}'" in text and "command line" in text
    assert nearest in text.rpartition("nearest known key is ")[2]


def test_unknown_key_in_a_file_names_the_line(tmp_path):
    text = message([write(tmp_path, "name: x\noptim:\n  lr: 1e-6\n  lrr: 3\n")])
    assert "'optim.lrr'" in text and "some.yaml, line 4" in text and "'optim.lr'" in text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seed=abc", "seed (command line) must be a whole number, not 'abc'."),
        ("seed=1.5", "must be a whole number, not 1.5."),
        ("seed=true", "must be a whole number, not true."),
        ("optim.lr=fast", "optim.lr (command line) must be a number, not 'fast'."),
        ("optim.lr=true", "must be a number, not true."),
        ("optim.lr=nan", "must be a number, not 'nan'."),
        ("optim.lr=.inf", "must be a number, not inf."),
        ("model.freeze_vision=1", "must be true or false, not 1."),
        ("model.freeze_vision=maybe", "must be true or false, not 'maybe'."),
        ("optim.betas=0.9", "must be a list of 2 numbers, not 0.9."),
        ("optim.betas=[0.9,0.9,0.9]", "must be a list of 2 numbers, not [0.9, 0.9, 0.9]."),
        ("rollout.prompt_buckets=[1,x]", "must be a list of whole numbers, not [1, 'x']."),
        ("actor.loss_mode=gsp", "must be one of gspo, vanilla,"),
        ("actor.loss_mode=gsp", "not 'gsp' (did you mean gspo?)."),
        ("data.max_val_examples=x", "must be a whole number or null, not 'x'."),
        ("data.domain_weights=3", "must be name: a number, not 3."),
        ("data.domain_weights.stem=x", "must be a number, not 'x'."),
        ("model.lora.rank=many", "model.lora.rank (command line) must be a whole number, not 'many'."),
        ("model=3", "'model' (command line) is a section: set one of its keys, such as model.path."),
    ],
)
def test_wrong_type_names_key_value_and_what_is_expected(empty, word, expected):
    assert expected in message([empty, word])


def test_wrong_type_in_a_file_names_the_line(tmp_path):
    assert (
        "name (" in (text := message([write(tmp_path, "seed: 3\nname: 7\n")])) and "line 2) must be text, not 7" in text
    )
    assert "must be text, not null" in message([write(tmp_path, "name:\n")])
    assert "seed.x" in message([write(tmp_path, "seed: {x: 1}\n")])
    assert "is a section" in message([write(tmp_path, "optim: 4\n")])


def test_missing_file_says_where_it_looked(tmp_path):
    text = message([str(tmp_path / "none.yaml")])
    assert "none.yaml' does not exist" in text and "mini.yaml" in text


def test_repository_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("mini.yaml") == find_config("configs/mini.yaml") == REPO / "configs" / "mini.yaml"


def test_broken_yaml_names_the_line(tmp_path):
    assert "some.yaml, line 3 is not valid YAML" in message([write(tmp_path, "name: x\noptim: [1, 2\n")])
    assert "line 3" in message([write(tmp_path, "name: x\noptim:\n\tlr: 3\n")])
    assert "not a single value or a list" in message([write(tmp_path, "- name\n")])
    assert "line 3: 'name' was already set in line 1" in message([write(tmp_path, "name: x\nseed: 1\nname: y\n")])
    assert "cannot be read" in message([_latin(tmp_path)])
    assert "not valid YAML" in message([write(tmp_path, "seed: !!python/object:os.system 1\n")])


def _latin(tmp_path: Path) -> str:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    return str(path)


def test_options_and_two_files_are_refused(empty):
    assert "unknown option '--fast'" in message([empty, "--fast"])
    assert "only one config file" in message([empty, empty])
    assert load_config([empty, "--seed=4"]).seed == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["actor.mini_batch_prompts=100"], "actor.mini_batch_prompts (100) must divide trainer.prompts_per_step (256)"),
        (["actor.clip_ratio_low=0"], "actor.clip_ratio_low must be greater than 0"),
        (["rollout.n=1"], "rollout.n must be at least 2, not 1: algorithm.adv_estimator=grpo"),
        (["rollout.prompt_buckets=[4096,2048]"], "rollout.prompt_buckets must ascend"),
        (["rollout.prompt_buckets=[2048]"], "so that every prompt has a bucket"),
        (["rollout.patch_buckets=[]"], "rollout.patch_buckets must list at least one"),
        (["actor.row_length=20000"], "actor.row_length (20000) must hold one prompt and one response"),
        (["rollout.patch_buckets=[80000]", "actor.row_patches=90000"], "rollout.patch_buckets (80000) is impossible"),
        (["rollout.prefill_chunk=700"], "rollout.prefill_chunk (700) must be a multiple of rollout.attention_block"),
        (["rollout.prompt_kv_tokens=64"], "rollout.prompt_kv_tokens (64) must hold at least one of the longest"),
        (["rollout.response_kv_tokens=9"], "rollout.response_kv_tokens (9) must hold at least one of the longest"),
        (["rollout.sampling.repetition_penalty=0"], "repetition_penalty must be greater than 0"),
        (["actor.rollout_is=token", "actor.old_logprobs=sampler"], "takes as they are; set one of the two"),
        (["cold_start.max_solution_length=0"], "cold_start.max_solution_length must be greater than 0, not 0"),
        (["cold_start.max_solution_length=999999"], "must hold one prompt and its solution"),
        (["actor.row_patches=1000"], "actor.row_patches (1000) must hold"),
        (["rollout.sampling.temperature=0"], "must be greater than 0: greedy"),
        (["trainer.val_sampling.top_p=0"], "trainer.val_sampling.top_p must lie between"),
        (["rollout.sampling.top_k=0"], "rollout.sampling.top_k must be -1 (off) or at least 1"),
        (["reward.format_weight=1.5"], "reward.format_weight must lie between 0 and 1, not 1.5"),
        (["reward.overlong_buffer=99999"], "rollout.max_response_length (18432)"),
        (["reward.overlong_max_length=100"], "reward.overlong_max_length (100)"),
        (["mesh.fsdp=-1"], "only one axis of the mesh can be -1, not mesh.data and mesh.fsdp"),
        (["mesh.tensor=0"], "mesh.tensor must be -1"),
        (["mesh.expert=0"], "mesh.expert must be -1 (what is left) or at least 1, not 0"),
        (["data.min_pixels=10", "data.max_pixels=5"], "data.min_pixels (10) must not exceed"),
        (["model.build.num_kv_heads=3"], "model.build.num_kv_heads (3) must divide"),
        (["model.build.vision_positions=200"], "must be a square number, not 200"),
        (["model.build.deepstack_layers=[1,9]"], "must ascend within 0 .. 3"),
        (["optim.schedule=cosine", "trainer.steps=40"], "optim.warmup_steps (40) must be less than trainer.steps (40)"),
        (["trainer.log_with=[tensorbord]"], "tensorboard and wandb, not 'tensorbord'"),
        (["name=a/b"], "name must be made of letters"),
        (["seed=-1"], "seed must not be negative"),
        (["optim.betas=[0.9,1]"], "optim.betas must lie"),
        (["model.lora.rank=-1"], "model.lora.rank must be 0 (off) or greater, not -1"),
        (["model.lora.alpha=0"], "model.lora.alpha must be greater than 0, not 0.0"),
        (
            ["model.lora.targets=q_prj,v_proj"],
            "names 'q_prj', which is no linear map of the language model: the nearest is 'q_proj'",
        ),
        (["model.lora.targets=[]"], "model.lora.targets must name at least one linear map"),
        (["model.lora.path=some/adapter"], "model.lora.path='some/adapter' needs model.lora.rank"),
    ],
)
def test_settings_that_cannot_work_together(empty, words, expected):
    assert expected in message([empty, *words])


def test_one_response_is_enough_where_prompts_are_not_compared(empty):
    assert load_config([empty, "rollout.n=1", "algorithm.adv_estimator=reinforce_plus_plus"]).rollout.n == 1


def test_every_domain_off_is_refused():
    weights = dict.fromkeys(Config().data.domain_weights, 0.0)
    config = dataclasses.replace(Config(), data=dataclasses.replace(Config().data, domain_weights=weights))
    with pytest.raises(UserError, match="all 0"):
        validate(config)


def test_resolved_yaml_reads_back_equal(tmp_path, empty):
    config = load_config([empty, "name=7", "optim.lr=1e-7", "data.system_prompt=yes: 'no'\\n#", "data.max_pixels=9999"])
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(config))
    assert load_config([str(path)]) == config
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)


def test_help_lists_every_key_with_its_comment():
    text = help_text()
    for key in flatten(to_dict(Config())):
        # weights of domains are one setting
        assert key.startswith("data.domain_weights.") or f"\n  {key} = " in text, key
    assert "responses per prompt" in text and "one of gspo, vanilla" in text and "configs" not in text.split("\n")[0]


def test_comments_belong_to_their_own_field():
    comments = config_loader._comments(type(Config().model))
    assert comments["path"].startswith("a Hugging Face folder") and not comments.get("lora")


def test_the_mixtures_settings_are_checked():
    assert "needs data.mixture.measures" in message(["data.mixture.weighting=length"])
    assert "below 1" in message(["data.mixture.weighting=difficulty", "data.mixture.measures.stem=55"])
    assert "at least 1" in message(["data.mixture.max_ratio=0.5"])
    assert "left out at the same time" in message(["data.mixture.domains=[stem]", "data.mixture.leave_out=[stem]"])
    assert "rotate" in message(["data.mixture.rotate=true", "data.mixture.order=reference"])
    config = load_config(["data.mixture.weighting=length", "data.mixture.measures.stem=1576.1"])
    assert config.data.mixture.measures == {"stem": 1576.1}
