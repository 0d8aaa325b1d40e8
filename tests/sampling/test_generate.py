"""The question-answering command: answers, defaults of the folder, and its errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import golden_dir
from PIL import Image

from vero_jax.config import SamplingConfig
from vero_jax.errors import UserError
from vero_jax.generate import default_sampling, main, policy_folder

pytestmark = pytest.mark.golden_model


@pytest.fixture(scope="module")
def folder() -> Path:
    found = [
        path.parent
        for path in sorted(golden_dir("model").glob("*/config.json"))
        if json.loads(path.read_text())["model_type"] == "qwen3_vl" and (path.parent / "model.safetensors").is_file()
    ]
    return found[0]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "xla"))


def test_answers_about_an_image(folder, tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.new("RGB", (70, 50), "red").save(picture)
    arguments = [str(folder), "What is it?", "--image", str(picture), "--max-tokens", "6", "--n", "2", "--seed", "3"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "answer 1 of 2" in first and "answer 2 of 2" in first
    assert main(arguments) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["/no/such/folder", "Hello"], "the checkpoint /no/such/folder does not exist"),
        (["FOLDER", "Hello", "--image", "/no/picture.png"], "cannot read the image /no/picture.png"),
        (["FOLDER", "Hello", "--image", __file__], "cannot be asked"),
        (["FOLDER", "Look: <image>"], "cannot be asked"),
        (["FOLDER", "Hello", "--top-p", "0"], "--top-p 0.0 must be above 0"),
        (["FOLDER", "Hello", "--temperature", "-1"], "--temperature -1.0 must be 0 or more"),
    ],
)
def test_mistakes_are_one_sentence(folder, arguments, message, capsys):
    assert main([str(folder) if argument == "FOLDER" else argument for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_run_directory_stands_for_its_exported_policy(folder, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints" / "3").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n")
    assert main([str(run), "Hello"]) == 2
    error = capsys.readouterr().err
    assert f"without an exported policy; make one with python -m vero_jax.convert {run} OUT" in error
    shutil.copytree(folder, run / "hf")
    assert policy_folder(run) == run / "hf" == policy_folder(run / "hf")
    assert main([str(run), "Hello", "--max-tokens", "2"]) == 0
    with pytest.raises(UserError, match="is no checkpoint"):
        policy_folder(tmp_path)


def test_defaults_come_from_the_folder(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 0}))
    assert default_sampling(file.parent) == SamplingConfig(temperature=0.7, top_p=0.8, top_k=-1, min_p=0.0)
    file.write_text(json.dumps({"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.05}))
    assert default_sampling(file.parent) == SamplingConfig(temperature=0, repetition_penalty=1.05)
    file.write_text("{")
    assert main([str(file.parent), "Hello"]) == 2
    assert "generation_config.json" in capsys.readouterr().err
    file.unlink()
    assert default_sampling(file.parent) == SamplingConfig()
