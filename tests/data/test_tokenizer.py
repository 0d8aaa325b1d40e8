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
@pytest.mark.parametrize(
    "name", ["Qwen3-VL-4B-Instruct", "Qwen2-VL", "Qwen2.5-text", "Qwen3-text", "Qwen2.5-VL-3B-Instruct"]
)
def test_real_tokenizers_give_the_ids_of_transformers(shared, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / name
    shutil.copytree(shared / "assets" / name, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    if not (folder / "merges.txt").is_file():  # the families share one
        shutil.copyfile(shared / "assets" / "Qwen3-VL-4B-Instruct" / "merges.txt", folder / "merges.txt")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    readme = (shared / "data" / "real_mini" / "README.md").read_text()
    for text in [*TRICKY, readme]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text)["input_ids"]


TRICKY = [
    *TEXTS,
    "".join(ADDED_TOKENS),
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>x<|im_end|>\n<think>\n\n</think>\n\n",
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><tool_response>',
    "<|image_pad|><|image_pad|> <|not_a_token|> <|im_start|",
    "0123456789 3.14159 1,234,567 ٣٤ ⅷ ２０ x²",
    " \t \n\n  \r\n \u00a0\u2003\u3000 end  ",
    "don't I'LL we'Ve'S",
    "e\u0301 \u212b ﬁ ｱ \U0001f469\u200d\U0001f469\u200d\U0001f466 नमस्ते ไทย 한글 \u1112\u1161\u11ab",
    "\x00\x01\x7f\ufffd\ufeff \ud7ff\ue000",
    "def f(x):\n\treturn [i**2 for i in range(10)]  # ###!!!???\n\n\n",
    "a" * 300 + "=" * 100 + " " * 70,
]


@pytest.mark.parity
@pytest.mark.real_data
@pytest.mark.parametrize("without_json", [False, True])
@pytest.mark.parametrize("name", ["607a5bea", "b5996959", "df0a3f6e", "e68cc0e3", "f064a39f"])
def test_small_tokenizers_give_the_ids_of_transformers(shared, tmp_path, name, without_json):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / name
    shutil.copytree(shared / "assets" / "small_tokenizers" / name, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    if without_json:
        (folder / "tokenizer.json").unlink()
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert ours.get_vocab_size() == len(theirs)
    for text in TRICKY:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.real_data
def test_the_version_line_of_merges_is_optional(shared, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(shared / "assets" / "small_tokenizers" / "607a5bea", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (folder / "tokenizer.json").unlink()
    with_line = load_tokenizer(folder)
    merges = folder / "merges.txt"
    assert merges.read_text().startswith("#version")
    merges.write_text(merges.read_text().split("\n", 1)[1])
    for text in TRICKY:
        assert load_tokenizer(folder).encode(text).ids == with_line.encode(text).ids


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
