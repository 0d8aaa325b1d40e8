"""Text is never evaluated: no code path that could, no known escape that does, and no execution that an audit sees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rewards.hostile import ESCAPES, FRAME_WALKS
from vero_jax.rewards.router import VERIFIERS, score_response
from vero_jax.rewards.settings import RewardSettings

EVALUATING_CALLS = frozenset({"eval", "exec", "compile", "__import__", "execfile"})
EVALUATING_NAMES = frozenset(
    {"sympify", "parse_expr", "lambdify", "pickle", "cPickle", "dill", "marshal", "shelve", "jsonpickle"}
)
NAMES_FROM_SETTINGS = {
    # The user's own functions, by the names in reward.*; fields of our own dataclasses.
    "custom.py": {"getattr", "import_module", "exec_module"},
    "messages.py": {"getattr"},
}


def _sources(repo: Path) -> Iterator[tuple[Path, ast.AST]]:
    for file in sorted((repo / "vero_jax").rglob("*.py")):
        yield file, ast.parse(file.read_text(encoding="utf-8"))


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def test_the_package_has_no_call_that_evaluates_text(repo: Path) -> None:
    found = []
    for file, tree in _sources(repo):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EVALUATING_CALLS:
                found.append((file.name, node.func.id))
            if isinstance(node, ast.Name | ast.Attribute) and _name(node) in EVALUATING_NAMES:
                found.append((file.name, _name(node)))
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", None) or ""}
                found += [(file.name, name) for name in names & EVALUATING_NAMES]
    assert not found


def test_no_line_of_the_rewards_looks_like_an_evaluation(repo: Path) -> None:
    """The plain search of the words, beside the syntax tree's."""
    words = re.compile(r"(?<![\w.])(?:eval|exec)\(|(?<!`)\bsympify\s*\(|pickle\.loads|yaml\.load\(")
    lines = [
        (file.name, line)
        for file in sorted((repo / "vero_jax" / "rewards").rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if words.search(line)
    ]
    assert not lines


def test_attributes_are_never_looked_up_by_names_from_data(repo: Path) -> None:
    found = []
    for file, tree in _sources(repo / "."):
        if "rewards" not in file.parts:
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = _name(node.func)
            constant = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            looks_up = name in ("getattr", "setattr", "attrgetter") and not constant
            allowed = NAMES_FROM_SETTINGS.get(file.name, set())
            if (looks_up or name in ("import_module", "exec_module")) and name not in allowed:
                found.append((file.name, node.lineno, name))
    assert not found


KINDS = [*VERIFIERS, "", "custom"]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("extra", [{}, {"tolerance": 0.05}, {"image_sizes": [[9, 9]], "model_family": "molmo2"}])
def test_known_escapes_do_nothing(tmp_path: Path, extra: dict[str, object], strict: bool) -> None:
    target = tmp_path / "created"
    settings = RewardSettings(strict_reference=strict)
    for escape in ESCAPES:
        code = escape.format(target=str(target))
        for kind in KINDS:
            for frame in (
                "{}",
                "<think>x</think><answer>{}</answer>",
                "<think>x</think><answer>\\boxed{{{}}}</answer>",
            ):
                score_response(frame.format(code), code, kind, extra, settings=settings)
                score_response(frame.format(code), "5", kind, extra, settings=settings)
    assert not target.exists()


@pytest.mark.parametrize("strict", [True, False])
def test_an_answer_that_walks_the_frames_finds_no_truth(strict: bool) -> None:
    settings = RewardSettings(strict_reference=strict)
    for walk in FRAME_WALKS:
        for depth in range(16):
            code = walk.format(depth=depth)
            for extra in ({}, {"tolerance": 0.5}):
                for answer in (f"\\boxed{{{code}}}", f"\\boxed{{${code}$}}", code):
                    text = f"<think>x</think><answer>{answer}</answer>"
                    for kind in ("numeric", "string_match", "multiple_choice", ""):
                        assert score_response(text, "1234567.5", kind, extra, settings=settings).accuracy == 0.0


AUDITED = """
import sys
sys.path.insert(0, {repo!r})
from tests.rewards.golden_rewards import cases
from tests.rewards.hostile import ESCAPES, FRAME_WALKS
from vero_jax.rewards.router import score_response
from vero_jax.rewards.settings import RewardSettings

kinds = ("numeric", "", "multiple_choice", "web_action", "list_string_match", "instruction_following")
rows = [(c["response"], c["ground_truth"], c["reward_type"], c["extra_info"]) for c in cases("rewards")
        if c["reward_type"] not in ("instruction_following", "instruction_following_llm_judge")]
texts = [escape.format(target="/nowhere/created") for escape in ESCAPES]
texts += [walk.format(depth=3) for walk in FRAME_WALKS]
texts += ["sqrt(4)", "$\\\\sin^2 x$", "1/0", "3*4+1", "pi", "5!", "lambda x: x"]
texts += ["$\\\\int_0^1 x dx$", "$x^2=4$", "$(1,2)$"]
rows += [(frame.format(text), truth, kind, extra) for text in texts for truth in (text, "5") for kind in kinds
         for extra in (None, {{"tolerance": 0.1}}) for frame in ("<think>a</think><answer>{{}}</answer>",
         "<think>a</think><answer>\\\\boxed{{{{{{}}}}}}</answer>", "<think>a</think><answer>${{}}$</answer>")]
executed, listening = [], False

def hook(event, arguments):
    if listening and event == "exec":
        name = getattr(arguments[0], "co_filename", "")
        if name.startswith("<") and not name.startswith("<frozen"):
            executed.append(name)

sys.addaudithook(hook)
for strict in (False, True):
    settings = RewardSettings(strict_reference=strict)
    for listening in (False, True):  # the first pass imports what is imported late
        for row in rows:
            score_response(*row, settings=settings)
print(len(rows), len(executed), executed[:3])
listening = True
eval("1")
print(len(executed))
"""


@pytest.mark.golden_rewards
def test_an_audit_of_the_interpreter_sees_no_text_executed(repo: Path) -> None:
    """Everything below us is watched, math-verify and sympy included; the last line shows that the watch works."""
    done = subprocess.run(
        [sys.executable, "-c", AUDITED.format(repo=str(repo))], capture_output=True, text=True, check=False, cwd=repo
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts, control = done.stdout.splitlines()
    assert int(counts.split()[0]) > 1000 and counts.split()[1] == "0", counts
    assert control == "1"
