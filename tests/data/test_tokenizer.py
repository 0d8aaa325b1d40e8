"""Building a tokenizer offline, writing it for transformers, and reading the ones of real checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from vero_jax.data.tokenizer import ADDED_TOKENS, CONTROL_TOKENS, TEXT_TOKENS, load_tokenizer, save_tokenizer
from vero_jax.data.tokenizer import train_tokenizer as train
from vero_jax.errors import UserError

CORPUS = [
    f"<think>The {color} {shape} has mark {number}.</think><answer>\\boxed{{{number}}}</answer>\nHow many?"
    for color in ("red", "green", "blue")
    for shape in ("circle", "square", "star")
    for number in range(40)
]
TEXTS = [
    "<think>The red star has mark 1234.</think><answer>\\boxed{7.5}</answer><|im_end|>",
    "  two  spaces\n\n\ttabs, it's naïve e\u0301 日本語 🙂",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path, train(CORPUS, 400))
    return path


def test_the_vocabulary_is_bytes_then_merges_then_added_tokens(folder):
    tokenizer = load_tokenizer(folder)
    size = tokenizer.get_vocab_size()
    assert size <= 400
    assert [tokenizer.id_to_token(index) for index in range(size - len(ADDED_TOKENS), size)] == list(ADDED_TOKENS)
    assert sorted(len(tokenizer.id_to_token(index)) for index in range(256)) == [1] * 256


def test_text_comes_back_as_it_was(folder):
    tokenizer = load_tokenizer(folder)
    for text in TEXTS:
        kept = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        assert kept == text.replace("e\u0301", "é")  # NFC


def test_digits_stand_alone_and_the_answer_format_is_short(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("12345").tokens == ["1", "2", "3", "4", "5"]
    assert len(tokenizer.encode("<answer>").ids) == 2
    assert len(tokenizer.encode("</answer>").ids) == 3
    assert len(tokenizer.encode("<think></think>").ids) == 2
    assert len(tokenizer.encode("<answer>\\boxed{").ids) <= 5


def test_control_tokens_leave_decoded_text_and_thoughts_stay(folder):
    tokenizer = load_tokenizer(folder)
    text = "".join(CONTROL_TOKENS) + "".join(TEXT_TOKENS)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True) == "".join(TEXT_TOKENS)


def test_training_again_in_another_process_gives_the_same_files(folder, tmp_path):
    (tmp_path / "corpus.json").write_text(json.dumps(CORPUS))
    code = (
        "import json, pathlib\nfrom vero_jax.data.tokenizer import *\n"
        "corpus = json.loads(pathlib.Path('corpus.json').read_text())\n"
        "save_tokenizer(pathlib.Path('again'), train_tokenizer(corpus, 400))\n"
    )
    environment = os.environ | {"RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_vocabulary_without_room_for_merges_is_refused():
    with pytest.raises(UserError, match="vocab_size=200"):
        train(CORPUS, 200)


@pytest.mark.parity
@pytest.mark.parametrize("without", [[], ["tokenizer.json"]])
def test_transformers_reads_the_same_tokenizer_and_template(folder, tmp_path, without):
    transformers = pytest.importorskip("transformers")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in without:
        (copy / name).unlink()
    theirs, ours = transformers.AutoTokenizer.from_pretrained(copy), load_tokenizer(copy)
    for text in [*TEXTS, *ADDED_TOKENS]:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert theirs(text)["input_ids"] == ids
        for skip in (True, False):
            assert theirs.decode(ids, skip_special_tokens=skip) == ours.decode(ids, skip_special_tokens=skip)
    assert theirs.eos_token == "<|im_end|>" and theirs.pad_token == "<|endoftext|>"
    rendered = theirs.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parity
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["Qwen3-VL-4B-Instruct", "Qwen2-VL", "Qwen2.5-text"])
def test_real_tokenizers_give_the_ids_of_transformers(shared, name):
    transformers = pytest.importorskip("transformers")
    folder = shared / "assets" / name
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    readme = (shared / "data" / "real_mini" / "README.md").read_text()
    for text in [*TEXTS, readme, "".join(CONTROL_TOKENS[:3]) + "".join(TEXT_TOKENS)]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json cannot be read as a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json cannot be read as JSON"),
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt is broken: 'a b c'"),
        ("merges.txt", "Ġ nothingLikeThat\n", "merges.txt do not fit together"),
        ("vocab.json", None, "has no tokenizer"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"7": {"content": "<think>"}}}',
            "'<think>' has id .* but 7",
        ),
    ],
)
def test_broken_files_are_named(folder, tmp_path, name, content, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if name != "tokenizer.json":
        (copy / "tokenizer.json").unlink()
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(copy)
