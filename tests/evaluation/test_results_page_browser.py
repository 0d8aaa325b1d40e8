"""The page of an evaluation in a real browser: it filters, searches, turns pages, and runs nothing of the texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from data_sets import picture

from tests.page_checker import browse, needs_browser
from tests.results_folders import answer, not_asked, write_folder
from vero_jax.evaluation.failures import PICTURES
from vero_jax.evaluation.report import write_report

HELPERS = """
const set = (id, value, event = "change") => {
  const box = document.getElementById(id);
  box.value = value;
  box.dispatchEvent(new Event(event));
};
const shown = () => document.getElementById("item").textContent;
const place = () => document.getElementById("place").textContent;
const visible = (element) => element.getClientRects().length > 0;
"""


def opened(folder: Path, script: str, tmp_path: Path, width: int = 1_280) -> dict:
    return browse(write_report(folder), HELPERS + script, tmp_path, width)


@needs_browser
def test_browser_filters_searches_and_turns(tmp_path):
    tasks = {
        "chartqa": [
            answer("chartqa", 0, 0.0, prompt="How many \\boxed \"bars\"?"), answer("chartqa", 1, 1.0, 0.0),
            answer("chartqa", 2, 1.0), answer("chartqa", 3, 0.0, stop_reason="length", response="Über alles\nzwölf"),
        ],
        "charxiv": [answer("charxiv", 0, None, missing="unjudged", judge=[{"prompt": "Same?", "reply": None}])],
        "erqa": [not_asked("erqa", 0, detail="truncated")],
    }  # fmt: skip
    result = opened(
        write_folder(tmp_path / "r", tasks),
        """
        const report = { all: place(), first: shown() };
        report.kinds = [...document.getElementById("kind").options].map((o) => o.value);
        document.getElementById("next").click();
        report.second = place();
        document.getElementById("previous").click();
        document.getElementById("previous").click();
        report.last = [place(), shown()];
        document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
        report.byKey = place();
        for (const kind of report.kinds) { set("kind", kind); report[`of ${kind}`] = place(); }
        set("kind", "strict");
        report.strict = shown();
        set("kind", "");
        set("task", "0");
        report.chartqa = place();
        set("search", "ÜBER ALLES zwölf", "input");
        report.found = [place(), shown().includes("zwölf")];
        set("search", '\\\\boxed "bars"', "input");
        report.quoted = place();
        set("search", "no such text", "input");
        report.nothing = [place(), shown(), document.getElementById("next").disabled];
        document.querySelector('.browse[data-task="charxiv"]').click();
        report.browsed = [place(), shown()];
        return report;
        """,
        tmp_path,
    )
    assert result["all"] == "1 of 5" and "chartqa-0" in result["first"] and result["second"] == "2 of 5"
    assert result["last"][0] == "5 of 5" and "truncated" in result["last"][1]
    assert result["byKey"] == "2 of 5"
    assert result["kinds"] == ["", "wrong", "strict", "unjudged", "cut", "unasked"]
    counts = {kind: result[f"of {kind}"] for kind in result["kinds"]}
    assert counts == {
        "": "1 of 5", "wrong": "1 of 2", "strict": "1 of 1", "unjudged": "1 of 1", "cut": "1 of 1", "unasked": "1 of 1",
    }  # fmt: skip
    assert "chartqa-1" in result["strict"] and result["chartqa"] == "1 of 3"
    assert result["found"] == ["1 of 1", True] and result["quoted"] == "1 of 1"
    assert result["nothing"] == ["none", "No answer in this page is like that.", True]
    assert result["browsed"][0] == "1 of 1" and "(no reply)" in result["browsed"][1]


@needs_browser
def test_browser_changes_the_base_model_and_unfolds_rows(tmp_path):
    rows = [answer("chartqa", index, 1.0, group="human") for index in range(3)]
    result = opened(
        write_folder(tmp_path / "r", {"chartqa": rows}, checkpoint="x/Qwen3-VL-8B", variant="reasoning_samplingq3"),
        """
        const button = [...document.querySelectorAll(".unfold")].find((b) => b.textContent === "ChartQA");
        const cells = () => [...button.closest("tr").querySelectorAll("td")].map((c) => c.innerText.trim());
        const charts = () => [...document.querySelectorAll("svg")].filter(visible).length;
        const report = { before: cells(), charts: charts(), pair: document.getElementById("pair").value };
        set("pair", "mimo");
        report.after = cells();
        report.chartsAfter = charts();
        report.legend = document.querySelector(".legend").innerText;
        const more = document.getElementById(button.getAttribute("aria-controls"));
        report.folded = visible(more);
        button.click();
        report.unfolded = [visible(more), button.getAttribute("aria-expanded"), more.innerText.includes("human")];
        button.click();
        report.again = [visible(more), button.getAttribute("aria-expanded")];
        report.wide = document.documentElement.scrollWidth <= window.innerWidth;
        return report;
        """,
        tmp_path,
    )
    assert result["pair"] == "qwen3" and result["charts"] == result["chartsAfter"] == 6
    assert result["before"][2:5] == ["89.6", "91.6", "+10.4"]
    assert result["after"][2:5] == ["90.1", "90.4", "+9.9"] and "MiMo-VL-7B-SFT" in result["legend"]
    assert not result["folded"] and result["unfolded"] == [True, "true", True] and result["again"] == [False, "false"]
    assert result["wide"]


@needs_browser
@pytest.mark.parametrize("width", [500, 1_280])  # Chromium has no narrower window
def test_page_is_never_wider_than_the_window(tmp_path, width):
    row = answer(
        "chartqa", 0, 0.0, prompt="x" * 500, response="y" * 500, extracted="z" * 500, row={"answer": "w" * 500}
    )
    result = opened(
        write_folder(tmp_path / "r", {"chartqa": [row]}, checkpoint="c" * 90, data="d" * 300),
        """
        for (const button of document.querySelectorAll(".unfold")) button.click();
        for (const part of document.querySelectorAll("details")) part.open = true;
        return { inner: window.innerWidth, wide: document.documentElement.scrollWidth };
        """,
        tmp_path,
        width,
    )
    assert result["inner"] == width and result["wide"] <= width


@needs_browser
def test_browser_runs_nothing_of_the_text(tmp_path):
    attack = "</div></script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    row = answer(
        "charxiv", 0, 0.0, id=attack, prompt=attack, response=attack, extracted=attack, group=attack,
        row={attack: attack, "answer": attack}, judge=[{"prompt": attack, "reply": attack}],
    )  # fmt: skip
    result = opened(
        write_folder(tmp_path / "r", {"charxiv": [row]}, checkpoint="mini"),
        """
        return { title: document.title, images: document.images.length,
                 answers: [...document.querySelectorAll(".answer")].map((a) => a.textContent) };
        """,
        tmp_path,
    )
    assert result == {"title": "mini: VeroEval", "images": 0, "answers": [attack] * 3}


@needs_browser
def test_browser_shows_pictures_beyond_those_in_the_page(tmp_path):
    count = PICTURES + 3
    rows = [answer("chartqa", index, 0.0, images=[f"images/{index}.png"]) for index in range(count)]
    folder = write_folder(tmp_path / "r", {"chartqa": rows})
    (folder / "images").mkdir()
    for index in range(count):
        (folder / "images" / f"{index}.png").write_bytes(picture())
    result = opened(
        folder,
        """
        const address = () => document.querySelector("#item img").getAttribute("src");
        const report = { first: address().slice(0, 11) };
        report.link = document.querySelector("#item figure a").getAttribute("href");
        document.getElementById("previous").click();
        report.last = address();
        return report;
        """,
        tmp_path,
    )
    assert result == {"first": "data:image/", "link": "images/0.png", "last": f"images/{count - 1}.png"}


@needs_browser
@pytest.mark.real_data
def test_browser_shows_real_questions_with_their_pictures(tmp_path, shared):
    source = shared / "data" / "veroeval_samples" / "chartqa"
    samples = [json.loads(line) for line in (source / "samples.jsonl").read_text(encoding="utf-8").splitlines()[:5]]
    folder = tmp_path / "r"
    rows = [
        answer(
            "chartqa",
            index,
            0.0,
            prompt=sample["question"],
            images=[f"images/{index}.png"],
            row={"answer": sample["answer"]},
        )
        for index, sample in enumerate(samples)
    ]
    write_folder(folder, {"chartqa": rows})
    (folder / "images").mkdir()
    for index, sample in enumerate(samples):
        shutil.copy(source / sample["image"], folder / "images" / f"{index}.png")
    result = opened(
        folder,
        """
        const report = { questions: [], shapes: [] };
        for (let index = 0; index < 5; index++) {
          report.questions.push(document.querySelector(".question .text").textContent);
          document.querySelector("#item img").removeAttribute("loading");
          document.getElementById("next").click();
        }
        report.inside = Object.values(data.pictures).map((address) => address.slice(0, 11));
        report.wide = document.documentElement.scrollWidth <= window.innerWidth;
        return report;
        """,
        tmp_path,
    )
    assert result["questions"] == [sample["question"] for sample in samples]
    assert result["inside"] == ["data:image/"] * 5 and result["wide"]
