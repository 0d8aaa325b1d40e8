"""VeroEval's benchmarks in validation: an engine that says what a test wants, and whole runs as a user starts them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.evaluation.data_sets import ROWS, picture, stored, write
from tests.rewards.judge_endpoint import Endpoint, endpoint, refuses, reward_config, text  # noqa: F401
from tests.test_train import TINY, metrics, numbers, train
from tests.test_train_killed import started, stream
from tests.test_train_pods import Pod
from vero_jax.config import BuildConfig, Config, SamplingConfig
from vero_jax.config_loader import load_config
from vero_jax.data.mini import text_corpus
from vero_jax.data.processor import Processor
from vero_jax.errors import UserError
from vero_jax.evaluation.registry import benchmark, select
from vero_jax.models.build import build_policy
from vero_jax.parallel.distributed import Hosts
from vero_jax.runtime.checkpoint import Checkpoints
from vero_jax.runtime.run_dir import RunDir
from vero_jax.sampling.inputs import Buckets
from vero_jax.types import Group, Prompt, Response
from vero_jax.val_tasks import TaskFigures, ValTasks, check_data, open_tasks

RIGHT = "</think><answer>\\boxed{14}</answer>"
WRONG = "</think><answer>\\boxed{0}</answer>"
CHART = ROWS["chartqa"][0]


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Processor:
    """Of a small policy, which may see 256 tokens."""
    folder = tmp_path_factory.mktemp("policy")
    build = BuildConfig(num_layers=1, vision_depth=1, deepstack_layers=(0,), hidden_size=32, vision_hidden_size=32)
    build_policy(folder, build, seed=0, corpus=text_corpus(0))
    return Processor.from_folder(folder, max_prompt_length=256)


class Engine:
    """Says `answer(prompt)` to every prompt, the last one first; keeps what it was asked."""

    def __init__(self, answer: Callable[[Prompt], str] = lambda prompt: RIGHT, patches: int = 4096) -> None:
        self._answer = answer
        self.buckets = Buckets((256,), (patches,))
        self.patch_layout = SimpleNamespace(merge_size=2)
        self.calls: list[dict[str, Any]] = []

    def generate(self, params: Any, prompts: Sequence[Prompt], **how: Any) -> Iterator[tuple[int, Group]]:
        self.calls.append({"ids": [prompt.example.id for prompt in prompts], **how})
        for index in reversed(range(len(prompts))):
            ids = np.zeros(7, np.int32)
            response = Response(ids, np.zeros(7, np.float32), "stop", self._answer(prompts[index]))
            yield index, Group(prompts[index], (response,))


class Case:
    """Validations of a run that asks `names`; `said` is what it told the user."""

    def __init__(self, processor: Processor, root: Path, names: Sequence[str], family: str = "qwen3_vl", **more: Any):
        settings = {"val_tasks": tuple(names), "val_tasks_dir": str(root / "data"), "val_tasks_limit": 0}
        config = load_config([str(_empty(root)), *more.pop("words", ())])
        trainer = dataclasses.replace(config.trainer, **(settings | more.pop("trainer", {})))
        self.config = dataclasses.replace(config, trainer=trainer, **more)
        self.run, self.said = RunDir(root / "run"), list[str]()
        self.run.validation.mkdir(parents=True, exist_ok=True)
        self.processor, self.family = processor, family

    def tasks(self, hosts: Hosts | None = None) -> ValTasks:
        opened = open_tasks(self.config, self.processor, self.family, self.run, self.said.append, hosts or Hosts())
        assert opened is not None
        return opened

    def measure(self, engine: Any) -> TaskFigures:
        return self.tasks().measure(engine, None, name="before", step=3)

    def lines(self, task: str) -> list[dict[str, Any]]:
        file = self.run.validation_file(f"before_{task}")
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _empty(root: Path) -> Path:
    file = root / "empty.yaml"
    file.write_text("{}\n")
    return file


def test_answers_become_metrics_means_of_categories_and_files(processor, tmp_path):
    write(benchmark("chartqa"), tmp_path / "data", [CHART, {**CHART, "type": "augmented_test", "answer": ["15"]}])
    write(benchmark("infovqa_val"), tmp_path / "data")
    write(benchmark("mathvision_test"), tmp_path / "data")
    case = Case(processor, tmp_path, ["MathVision", "chartqa,infovqa_val"])
    found = case.measure(Engine())
    assert found.scores == {"chartqa": 50.0, "infovqa_val": 100.0, "mathvision_test": 100.0}
    assert found.metrics["val/chartqa/score"] == 50.0
    assert found.metrics["val/mathvision_test/strict"] == 100.0
    assert found.metrics["val/chartqa/unjudged"] == found.metrics["val/chartqa/left_out"] == 0.0
    assert found.metrics["val/veroeval/chart_ocr"] == 75.0
    assert found.metrics["val/veroeval/stem"] == 100.0
    assert found.metrics["val/veroeval/overall"] == pytest.approx(250 / 3)
    assert "val/veroeval/spatial_action" not in found.metrics  # what was not run has no figure, and is not 0
    assert found.text == "chartqa 50.0, infovqa_val 100.0, mathvision_test 100.0"
    first, second = case.lines("chartqa")
    assert first == {
        "task": "chartqa", "step": 3, "id": "chartqa-0", "input": "How many?", "output": RIGHT,
        "extracted": "14", "prediction": "14", "score": 1.0, "strict": 1.0, "group": "human", "missing": None,
        "stop_reason": "stop", "response_length": 7,
    }  # fmt: skip
    assert (second["id"], second["score"], second["group"]) == ("chartqa-1", 0.0, "augmented")


@pytest.mark.parametrize(
    ("family", "asked", "expected"),
    [
        ("qwen3_vl", "", SamplingConfig(temperature=1.0, top_p=0.95, top_k=20, presence_penalty=1.5)),
        ("qwen3_vl_moe", "", SamplingConfig(temperature=1.0, top_p=0.95, top_k=20, presence_penalty=1.5)),
        ("qwen2_5_vl", "", SamplingConfig(temperature=0.6, top_p=0.95)),
        ("qwen3_vl", "qwen25_zs", SamplingConfig(temperature=0.0)),
    ],
)
def test_answers_are_drawn_as_the_variant_says_which_goes_by_the_family(processor, tmp_path, family, asked, expected):
    write(benchmark("chartqa"), tmp_path / "data")
    engine = Engine()
    Case(processor, tmp_path, ["chartqa"], family, trainer={"val_tasks_variant": asked}).measure(engine)
    (call,) = engine.calls
    assert call["sampling"] == expected
    assert (call["n"], call["seed"], call["step"]) == (1, 0, 0)


def test_an_answer_is_no_longer_than_the_variant_and_the_run_allow(processor, tmp_path):
    for name in ("chartqa", "mathvision_test"):
        write(benchmark(name), tmp_path / "data")
    for most, expected in ((24, {24, 16}), (2000, {2000, 16})):
        engine = Engine()
        words = [f"rollout.max_response_length={most}", "reward.overlong_buffer=0"]
        trainer = {"val_tasks_variant": "qwen25_zs"}
        Case(processor, tmp_path, ["chartqa", "mathvision_test"], words=words, trainer=trainer).measure(engine)
        assert {call["max_new_tokens"] for call in engine.calls} == expected


def test_the_policy_is_asked_as_in_training_with_its_system_prompt(processor, tmp_path):
    write(benchmark("chartqa"), tmp_path / "data")
    seen: list[str] = []

    def answer(prompt: Prompt) -> str:
        seen.append(processor.decode([int(i) for i in prompt.token_ids]))
        return RIGHT

    with_prompt = dataclasses.replace(processor, system_prompt="Think first.")
    Case(with_prompt, tmp_path, ["chartqa"]).measure(Engine(answer))
    assert "Think first." in seen[0] and "How many?" in seen[0]


def test_what_cannot_be_asked_is_counted_by_reason_and_written_down(processor, tmp_path):
    rows = [
        CHART,
        {**CHART, "image": stored(b"no picture")},
        {**CHART, "question": "why? " * 400},
        {**CHART, "image": stored(picture((512, 512)))},
        {**CHART, "question": "What is <image>?"},
        {**CHART, "question": "What is <|image_pad|>?"},
    ]
    write(benchmark("chartqa"), tmp_path / "data", rows)
    case = Case(processor, tmp_path, ["chartqa"])
    engine = Engine(patches=128)
    found = case.measure(engine)
    assert engine.calls[0]["ids"] == ["chartqa-0", "chartqa-4"]
    assert found.metrics["val/chartqa/left_out"] == 4.0
    assert found.scores == {"chartqa": 100.0}  # of those that were asked
    reasons = {line["id"]: line["missing"] for line in case.lines("chartqa")}
    assert reasons == {
        "chartqa-0": None,
        "chartqa-1": "image not readable",
        "chartqa-2": "prompt too long",
        "chartqa-3": "prompt too long",
        "chartqa-4": None,
        "chartqa-5": "image tokens do not match the images",
    }
    assert "2 left out: prompt too long" in found.text


def test_half_of_a_surrogate_pair_in_a_conversation_stops_nothing(processor, tmp_path):
    asked = [{"type": "image"}, {"type": "text", "text": "What \ud800?"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "14 \udfff"}]
    # JSON inside of a text, which no reader of files looks into.
    row = {"image": stored(), "category": "charts", "conversation": json.dumps(turns)}
    write(benchmark("mm_mt_bench"), tmp_path / "data", [row])
    case = Case(processor, tmp_path, ["mm_mt_bench"])
    assert case.measure(Engine()).metrics["val/mm_mt_bench/unjudged"] == 1.0
    assert case.lines("mm_mt_bench")[0]["input"].endswith("What ??")


def test_data_that_has_gone_since_the_start_is_said_and_stops_no_run(processor, tmp_path):
    write(benchmark("infovqa_val"), tmp_path / "data")
    folder = write(benchmark("chartqa"), tmp_path / "data")
    case = Case(processor, tmp_path, ["chartqa", "infovqa_val"])
    tasks = case.tasks()
    shutil.rmtree(folder)
    found = tasks.measure(Engine(), None, name="before", step=0)  # type: ignore[arg-type]
    assert found.scores == {"infovqa_val": 100.0} and "val/chartqa/score" not in found.metrics
    assert case.said[-1].startswith("chartqa is not asked, its data is gone: ")


def test_a_data_set_of_which_nothing_can_be_asked_has_no_figure(processor, tmp_path):
    write(benchmark("chartqa"), tmp_path / "data", [{**CHART, "image": stored(b"no picture")}])
    engine = Engine()
    found = Case(processor, tmp_path, ["chartqa"]).measure(engine)
    assert engine.calls == [] and found.scores == {"chartqa": None}
    assert "val/chartqa/score" not in found.metrics and "val/veroeval/overall" not in found.metrics
    assert found.text == "chartqa no question could be used (1 left out: image not readable)"


def test_questions_of_all_tasks_share_batches_and_the_limit_spreads_over_a_data_set(processor, tmp_path):
    write(benchmark("chartqa"), tmp_path / "data", [{**CHART, "question": f"Number {i}?"} for i in range(10)])
    write(benchmark("infovqa_val"), tmp_path / "data")
    engine = Engine()
    trainer = {"val_tasks_limit": 5, "val_batch": 4}
    found = Case(processor, tmp_path, ["infovqa_val", "chartqa"], trainer=trainer).measure(engine)
    assert [call["ids"] for call in engine.calls] == [
        ["chartqa-0", "chartqa-2", "chartqa-4", "chartqa-6"],
        ["chartqa-8", "infovqa_val-0"],
    ]
    assert found.scores == {"chartqa": 100.0, "infovqa_val": 100.0}


def test_a_question_that_needs_another_answer_is_asked_together_with_it(processor, tmp_path):
    fact, main, other = ROWS["mmifeval"]
    rows = [{**fact, "id": 9}, *({**row, "id": number} for number in range(4) for row in (main, other))]
    write(benchmark("mmifeval"), tmp_path / "data", rows)
    engine = Engine()
    trainer = {"val_tasks_limit": 2}  # of five: the fact, and the second instruction with what goes to it
    found = Case(processor, tmp_path, ["mmifeval"], trainer=trainer).measure(engine)
    assert engine.calls[0]["ids"] == ["mmifeval-0", "mmifeval-3", "mmifeval-4"]
    assert found.metrics["val/mmifeval/unjudged"] == 2.0


# Judges.


def test_without_a_judge_its_answers_are_unjudged_which_is_said_once_and_is_not_0(processor, tmp_path):
    write(benchmark("charxiv"), tmp_path / "data")
    write(benchmark("chartqa"), tmp_path / "data")
    case = Case(processor, tmp_path, ["charxiv", "chartqa"])
    tasks = case.tasks()
    for _ in range(2):
        found = tasks.measure(Engine(), None, name="before", step=0)  # type: ignore[arg-type]
    assert found.scores == {"chartqa": 100.0, "charxiv": None}
    assert found.metrics["val/charxiv/unjudged"] == 1.0 and "val/charxiv/score" not in found.metrics
    assert found.metrics["val/veroeval/chart_ocr"] == 100.0
    assert case.lines("charxiv")[0]["missing"] == "unjudged"
    assert sum("charxiv need a judge, which this run lacks" in line for line in case.said) == 1
    assert case.said[0] == "validation asks 2 questions of chartqa, charxiv (VeroEval, variant reasoning_samplingq3)"


def test_the_judge_of_the_run_is_asked_in_free_text_and_once_about_equal_answers(
    processor,
    tmp_path,
    endpoint,  # noqa: F811
):
    row = ROWS["chartmuseum"][0]
    write(benchmark("chartmuseum"), tmp_path / "data", [row, row, {**row, "question": "What?"}])
    endpoint.first = endpoint.otherwise = text("<think>4?</think>yes")
    case = Case(processor, tmp_path, ["chartmuseum"], reward=reward_config(endpoint))
    tasks = case.tasks()
    assert len(endpoint.bodies) == 1  # the first request, which shows that it can be asked
    endpoint.bodies.clear()
    for _ in range(2):  # the second time from the run's own file
        found = tasks.measure(Engine(), None, name="before", step=0)  # type: ignore[arg-type]
        assert found.scores == {"chartmuseum": 100.0} and found.metrics["val/chartmuseum/unjudged"] == 0.0
    wanted = [body for body in endpoint.bodies if "a right answer to" not in body["messages"][0]["content"]]
    assert len(wanted) == 2
    for body in wanted:
        assert "response_format" not in body and body["presence_penalty"] == 0.0
        assert body["max_tokens"] == 2048
    assert "the answers to chartmuseum are judged by the run's judge" in case.said


def test_a_judge_that_can_sleep_is_put_to_sleep_when_it_has_judged(processor, tmp_path, endpoint):  # noqa: F811
    write(benchmark("chartmuseum"), tmp_path / "data")
    endpoint.sleeping = True
    endpoint.first = endpoint.otherwise = text("no")
    tasks = Case(processor, tmp_path, ["chartmuseum"], reward=reward_config(endpoint)).tasks()
    assert endpoint.sleeping is True
    assert tasks.measure(Engine(), None, name="before", step=0).scores == {"chartmuseum": 0.0}  # type: ignore[arg-type]
    assert endpoint.sleeping is True and endpoint.paths.count("/wake_up") == 2


def test_a_judge_that_fails_later_leaves_answers_unjudged_and_the_run_goes_on(
    processor,
    tmp_path,
    endpoint,  # noqa: F811
):
    write(benchmark("chartmuseum"), tmp_path / "data")
    endpoint.first = endpoint.otherwise = text("yes")
    case = Case(processor, tmp_path, ["chartmuseum"], reward=reward_config(endpoint))
    tasks = case.tasks()
    endpoint.first = endpoint.otherwise = refuses(403)
    found = tasks.measure(Engine(), None, name="before", step=0)  # type: ignore[arg-type]
    assert found.scores == {"chartmuseum": None} and found.metrics["val/chartmuseum/unjudged"] == 1.0
    assert case.said[-1].startswith("validation goes on without some judgements: ")


def test_a_judge_that_cannot_be_asked_is_found_out_before_the_run_begins(processor, tmp_path, endpoint):  # noqa: F811
    write(benchmark("chartmuseum"), tmp_path / "data")
    endpoint.first = endpoint.otherwise = refuses(401)
    with pytest.raises(UserError, match="refuses access"):
        Case(processor, tmp_path, ["chartmuseum"], reward=reward_config(endpoint)).tasks()


# Mistakes.


def message(tmp_path: Path, *words: str) -> str:
    with pytest.raises(UserError) as raised:
        load_config([str(_empty(tmp_path)), *words])
    return str(raised.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["val_tasks=chartq", "val_tasks_dir=d"],
            "no benchmark or category of VeroEval is called 'chartq': near it are chartqa",
        ),
        (["val_tasks=chartqa"], "trainer.val_tasks needs trainer.val_tasks_dir"),
        (
            ["val_tasks=chartqa", "val_tasks_dir=d", "val_tasks_limit=-1"],
            "trainer.val_tasks_limit must not be negative",
        ),
        (
            ["val_tasks=chartqa", "val_tasks_dir=d", "val_tasks_variant=reason"],
            "no evaluation variant is called 'reason'",
        ),
        (["keep_best_by=val/acuracy"], "near it are val/accuracy"),
        (["keep_best_by=val/chartqa/score"], "the metrics of benchmarks are there for those in trainer.val_tasks"),
        (
            ["val_tasks=chartqa", "val_tasks_dir=d", "keep_best_by=val/veroeval/chart_orc"],
            "near it are val/veroeval/chart_ocr",
        ),
        (["val_tasks=charxiv", "val_tasks_dir=d", "keep_best_by=val/charxiv/score"], "needs a judge, which this run"),
        (
            ["val_greedy=false", "val_blind=false", "keep_best_by=val/accuracy_greedy"],
            "needs trainer.val_greedy=true",
        ),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(tmp_path, words, expected):
    assert expected in message(tmp_path, *(f"trainer.{word}" for word in words))


@pytest.mark.parametrize(
    "metric", ["val/chartqa/score", "val/chartqa/strict", "val/veroeval/chart_ocr", "val/veroeval/overall",
               "val/accuracy", "val/accuracy_greedy", "val/my domain/accuracy", "val-core/mine/reward/mean@1"],
)  # fmt: skip
def test_the_best_checkpoint_can_be_chosen_by_any_metric_of_validation(tmp_path, metric):
    words = ["trainer.val_tasks=chartqa", "trainer.val_tasks_dir=d", f"trainer.keep_best_by={metric}"]
    assert load_config([str(_empty(tmp_path)), *words]).trainer.keep_best_by == metric


def test_missing_data_is_a_sentence_that_names_all_benchmarks_without_it(tmp_path):
    write(benchmark("chartqa"), tmp_path)
    trainer = dataclasses.replace(Config().trainer, val_tasks=("chartqa", "stem"), val_tasks_dir=str(tmp_path))
    others = ", ".join(task.name for task in select(["stem"])[1:])
    with pytest.raises(UserError, match=rf"names mathvision_test, .*no folder MathLLMs/MathVision.*{others}"):
        check_data(dataclasses.replace(Config(), trainer=trainer))
    check_data(dataclasses.replace(Config(), trainer=dataclasses.replace(trainer, val_tasks=("chartqa",))))


def test_an_empty_data_set_counts_as_missing(tmp_path):
    folder = tmp_path / "ChartQA"
    folder.mkdir()
    (folder / "test.jsonl").write_text("")
    trainer = dataclasses.replace(Config().trainer, val_tasks=("chartqa",), val_tasks_dir=str(tmp_path))
    with pytest.raises(UserError, match="names chartqa, whose data cannot be used"):
        check_data(dataclasses.replace(Config(), trainer=trainer))


def test_a_policy_without_eyes_is_not_asked_about_pictures(processor, tmp_path):
    write(benchmark("chartqa"), tmp_path / "data")
    blind = dataclasses.replace(processor, image_settings=None)
    with pytest.raises(UserError, match="a text-only policy cannot see"):
        Case(blind, tmp_path, ["chartqa"], "qwen3").tasks()


def test_scores_by_another_metric_are_forgotten_and_stay_so(tmp_path):
    with Checkpoints(tmp_path, keep_best=1) as checkpoints:
        checkpoints.note_score(1, 0.5)
        checkpoints.forget_scores()
    with Checkpoints(tmp_path, keep_best=1) as checkpoints:
        assert checkpoints.scores == {}


# Whole runs.

SHORT = (
    "cold_start.steps=0",
    "optim.warmup_steps=0",
    "trainer.steps=2",
    "trainer.val_every=1",
    "trainer.val_blind=false",
)
FITTING = ("data.max_prompt_length=96", "rollout.prompt_buckets=96", "cold_start.max_solution_length=96")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def real_charts(shared, tmp_path) -> Path:
    """Eight questions of ChartQA; of one the picture is broken, and one is too long."""
    source, folder = shared / "data" / "veroeval_samples" / "chartqa", tmp_path / "data" / "lmms-lab" / "ChartQA"
    rows = [json.loads(line) for line in (source / "samples.jsonl").read_text("utf-8").splitlines()[:8]]
    for row in rows:
        (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / row["image"], folder / row["image"])
    (folder / "broken.png").write_bytes(b"no picture")
    rows[3]["image"], rows[5]["question"] = "broken.png", "why? " * 100
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_a_run_without_its_data_ends_at_the_start_with_one_sentence(cache, tmp_path):
    words = ("trainer.val_tasks=chartqa", f"trainer.val_tasks_dir={tmp_path / 'nowhere'}")
    output = train(tmp_path / "run", cache, *words, code=2)
    assert output.count("error: ") == 1 and "Traceback" not in output
    assert "trainer.val_tasks names chartqa, whose data cannot be used" in output
    assert "building a new policy" not in output


@pytest.mark.slow
def test_benchmarks_are_measured_and_change_nothing_in_training(real_charts, cache, tmp_path):
    without, run = tmp_path / "without", tmp_path / "with"
    train(without, cache, *SHORT, *FITTING)
    wanted = ("trainer.val_tasks=chartqa", f"trainer.val_tasks_dir={real_charts}")
    output = train(run, cache, *SHORT, *FITTING, *wanted, "trainer.keep_best_by=val/chartqa/strict",
                   "trainer.warm_up=true")  # fmt: skip
    assert "validation asks 8 questions of chartqa (VeroEval, variant reasoning_samplingq3)" in output
    assert "1 left out: image not readable, 1 left out: prompt too long" in output
    assert numbers(run) == numbers(without)
    assert any(line["actor/grad_norm"] > 0 and line["actor/lr"] > 0 for line in metrics(run))
    stages = metrics(run, "validation")
    assert [line["stage"] for line in stages] == ["before", "during", "final"]
    for line, plain in zip(stages, metrics(without, "validation"), strict=True):
        assert line["val/chartqa/left_out"] == 2 and line["val/chartqa/unjudged"] == 0
        assert 0 <= line["val/chartqa/score"] <= 100 and line["val/veroeval/chart_ocr"] == line["val/chartqa/score"]
        own = {key: value for key, value in line.items() if "chartqa" not in key and "veroeval" not in key}
        assert own | {"timing_s/testing": 0} == plain | {"timing_s/testing": 0}
    assert len({line["perf/traces"] for line in metrics(run)}) == 1  # warm_up compiled the benchmarks' sampling, too
    for name in ("before", "step_000001", "final"):
        lines = (run / "validation" / f"{name}_chartqa.jsonl").read_text("utf-8").splitlines()
        assert len(lines) == 8
    scores = {line["step"]: line["val/chartqa/strict"] for line in stages if line["step"]}
    assert json.loads((run / "checkpoints" / "scores.json").read_text()) == {str(k): v for k, v in scores.items()}
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["veroeval"]) == {"before", "step_000001", "final"}
    assert summary["veroeval"]["final"] == {"chartqa": stages[-1]["val/chartqa/score"]}


@pytest.mark.slow
def test_two_processes_ask_the_same_questions_and_get_the_same_answers_as_one(real_charts, cache, tmp_path):
    words = (*SHORT, *FITTING, "trainer.steps=1", "trainer.val_tasks=chartqa", f"trainer.val_tasks_dir={real_charts}")
    runs = {}
    for processes in (1, 2):
        runs[processes] = tmp_path / f"run{processes}"
        with Pod(runs[processes], cache, *words, processes=processes, devices=2 // processes) as pod:
            assert pod.wait() == [0] * processes, pod.text(0)[-3000:]
    for name in ("before", "final"):
        one, two = ((run / "validation" / f"{name}_chartqa.jsonl").read_text("utf-8") for run in runs.values())
        if name == "before":  # of the very same weights
            assert one == two
        assert len(two.splitlines()) == 8
    left, right = (metrics(run, "validation")[0] for run in runs.values())
    assert left["val/chartqa/score"] == right["val/chartqa/score"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_run_that_ends_while_benchmarks_are_asked_asks_them_again(undisturbed, cache, tmp_path, how):
    run, settings, expected = tmp_path / "run", undisturbed.settings, undisturbed.run
    with started(run, cache, *settings) as process:
        assert process.wait_for("@begin benchmarks", 2), process.lines[-20:]
        process.process.send_signal(how)
        code = process.process.wait(120)
    said = [line for _, line in process.lines]
    assert said.count("@begin benchmarks") == 2 and said.count("@end benchmarks") == 1
    assert code == (-how if how is signal.SIGKILL else 128 + how), said[-20:]
    assert not (run / "validation" / "step_000001_chartqa.jsonl").exists()
    with started(run, cache, *settings) as process:
        assert process.process.wait(800) == 0, process.lines[-20:]
    assert stream(run) == stream(expected)
    for name in ("before", "step_000001", "final"):
        one, other = (folder / "validation" / f"{name}_chartqa.jsonl" for folder in (run, expected))
        assert one.read_bytes() == other.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory) -> SimpleNamespace:
    """A run with 60 questions at each validation, and its settings."""
    root = tmp_path_factory.mktemp("undisturbed")
    rows = [CHART | {"question": f"How many bars are taller than {number}?"} for number in range(60)]
    write(benchmark("chartqa"), root / "data", rows)
    settings = (*TINY, *SHORT, *FITTING, "trainer.val_tasks=chartqa", f"trainer.val_tasks_dir={root / 'data'}",
                "trainer.val_tasks_limit=0", "trainer.val_batch=4", "trainer.log_with=")  # fmt: skip
    with started(root / "run", cache, *settings) as process:
        assert process.process.wait(800) == 0, process.lines[-20:]
    return SimpleNamespace(run=root / "run", settings=settings)
