"""Settings of the judge: defaults that need nothing, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from vero_jax.config_loader import load_config
from vero_jax.errors import UserError


def message(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(["reward.judge=openai", *words])
    return str(caught.value)


def test_a_judge_is_one_setting_and_none_is_the_default() -> None:
    assert load_config([]).reward.judge == "none" and load_config(["reward.judge=none"]).reward.judge == "none"
    config = load_config(["reward.judge=openai", "reward.judge_server.base_url=https://example.org:8443/judge/v1"])
    assert config.reward.judge_server.model == "" and config.reward.judge_server.temperature == 0.7


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("base_url=localhost:8000/v1", "must be an address such as http://localhost:8000/v1, not 'localhost:8000/v1'"),
        ("base_url=ftp://host/v1", "base_url must be an address"),
        ("base_url=http://host:port/v1", "base_url must be an address"),
        ("base_url=http://[::1/v1", "base_url must be an address"),
        ("base_url=", "base_url must be an address"),
        ("api_key_env=sk-123", "api_key_env must be the name of an environment variable"),
        ("timeout_s=0", "timeout_s must be greater than 0, not 0.0"),
        ("concurrency=0", "concurrency must be greater than 0"),
        ("max_tokens=-1", "max_tokens must be greater than 0"),
        ("max_retries=-1", "max_retries must not be negative"),
        ("temperature=-1", "judge_server.temperature must not be negative"),
        ("top_p=0", "judge_server.top_p must lie"),
        ("presence_penalty=3", "presence_penalty must lie between -2 and 2"),
        ("max_missing_share=2", "max_missing_share must lie between 0 and 1"),
        ("extra_body=[1]", "extra_body must be a JSON object"),
        ("extra_body={a: 1}", "extra_body must be a JSON object"),
        ("scale=0_to_10", "one of 0_to_1, minus1_to_1, raw"),
    ],
)
def test_a_mistake_is_one_sentence(word: str, named: str) -> None:
    found = message(f"reward.judge_server.{word}")
    assert named in found and "\n" not in found


@pytest.mark.parametrize("url", ["http://me:hunter2@host/v1", "https://host/v1?key=hunter2", "me:hunter2@host"])
def test_a_secret_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    found = message(f"reward.judge_server.base_url={url}")
    assert "api_key_env" in found and "hunter2" not in found


def test_the_key_itself_in_place_of_its_name_is_not_repeated() -> None:
    assert "hunter2" not in message("reward.judge_server.api_key_env=sk-hunter2")


def test_without_a_judge_its_settings_do_not_matter(tmp_path: Path) -> None:
    load_config(["reward.judge=none", "reward.judge_server.base_url=nowhere", "reward.judge_server.timeout_s=0"])


def test_functions_of_ones_own_leave_nothing_to_a_judge(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(solution_str, **_):\n    return 1.0\n")
    assert "reward.judge=openai and reward.functions do not go together" in message(f"reward.functions={file}:f")
