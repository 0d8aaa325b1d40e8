"""The page of an evaluation: whole without a network, safe with any text, and honest about what is not there."""

from __future__ import annotations

import html
import json
import re
import time
from pathlib import Path

import pytest
from data_sets import picture

from tests.page_checker import Checker
from tests.results_folders import answer, not_asked, write_folder
from vero_jax.errors import UserError
from vero_jax.evaluation.charts import Bars, chart
from vero_jax.evaluation.failures import KINDS, MOST, PICTURES, failures, half_marks, kinds_of, shortened
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.registry import benchmark, table_rows
from vero_jax.evaluation.report import write_report

ATTACK = '</div></script><script>document.title="owned"</script><img src=x onerror=alert(1)> & "quoted" $title \u2028'


def page(folder: Path) -> tuple[Checker, str]:
    path = write_report(folder)
    assert path == folder / "report.html"
    source = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(source)
    checker.close()
    assert not checker.open
    names = [attributes["id"] for _, attributes in checker.tags if "id" in attributes]
    assert len(names) == len(set(names))
    return checker, source


def data(source: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)
    return json.loads(found[1])


def cells(source: str, name: str) -> list[str]:
    """Texts of the cells of a row of the table, of the chosen base model only."""
    (row,) = re.findall(rf"<tr[^>]*>(?:(?!</tr>).)*?>{re.escape(html.escape(name))} ?<.*?</tr>", source, re.DOTALL)
    row = re.sub(r'<span class="pair" data-pair="\w+" hidden>(?:<span[^>]*>[^<]*</span>|[^<]*)</span>', "", row)
    return [re.sub("<[^>]*>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)]


def test_figures_stand_beside_the_papers(tmp_path):
    tasks = {
        "chartqa": [answer("chartqa", i, float(i < 3), float(i < 2), group="human") for i in range(4)],
        "erqa": [answer("erqa", i, 1.0) for i in range(4)],
    }
    checker, source = page(write_folder(tmp_path / "r", tasks, checkpoint="Qwen/Qwen2.5-VL-7B-Instruct"))
    assert cells(source, "ChartQA") == ["75.0 ± 2.1", "50.0", "87.3", "90.6", "−12.3", "4", "", ""]
    assert cells(source, "ChartMuseum") == ["not run", "not run", "26.8", "33.0", "", "", "", ""]
    overall = cells(source, "Overall")
    assert overall[:2] == ["87.5 ± 1.5", "75.0"]  # the error of a mean of two figures with 2.1 each
    assert overall[2:5] == ["64.5", "66.5", "+23.0"]  # of the paper, over the same two rows
    assert "2 of 30 benchmarks were run" in checker.text and "2 of 30" in checker.text
    assert "human" in checker.text and "overall 87.5 (strict 75.0) over 2 of 30 benchmarks" in checker.text


def test_every_row_is_there_and_what_was_not_run_is_never_0(tmp_path):
    checker, source = page(write_folder(tmp_path / "r", {"chartqa": [answer("chartqa", 0, 1.0)], "fvqa": []}))
    for row in table_rows():
        found = cells(source, row)
        assert len(found) == 8
        if row != "ChartQA":
            assert found[0] == found[1] == "not run" and found[4] == ""
    assert "no data set here" in checker.text
    assert source.count('class="none"') == 4 * (29 + 5)  # four base models; 29 rows and 5 categories without a bar


def test_a_row_whose_replies_nobody_can_read_was_run(tmp_path):
    unread = [{**answer("fvqa", 0, 0.0), "strict": None, "missing": "unjudged"}]
    folder = write_folder(tmp_path / "r", {"fvqa": unread, "chartqa": [answer("chartqa", 0, 1.0)]})
    checker, source = page(folder)
    assert cells(source, "FVQA")[:2] == ["0.0 ± 2.1", "unjudged"]
    assert cells(source, "Overall")[:2] == ["50.0 ± 1.5", "100.0"]
    assert "The strict means leave out FVQA" in checker.text


def test_an_evaluation_of_nothing_is_a_page(tmp_path):
    checker, source = page(write_folder(tmp_path / "r", {}))
    assert "no overall figure" in checker.text and data(source)["items"] == []
    assert cells(source, "Overall")[0] == "not run"


def test_a_row_of_three_tasks_is_not_run_when_one_is_missing_but_its_tasks_unfold(tmp_path):
    easy = "visual_probe_easy"
    checker, source = page(write_folder(tmp_path / "r", {easy: [answer(easy, 0, 1.0)], "visual_probe_hard": []}))
    assert cells(source, "VisualProbe")[0] == "not run"
    assert easy in checker.text and "no data set here" in checker.text


def test_counts_of_what_has_no_figure_are_told(tmp_path):
    rows = [
        answer("fvqa", 0, 1.0), answer("fvqa", 1, None, missing="unjudged"), not_asked("fvqa", 2),
        not_asked("fvqa", 3, "row not usable"),
    ]  # fmt: skip
    checker, source = page(write_folder(tmp_path / "r", {"fvqa": rows}))
    assert cells(source, "FVQA")[5:] == ["2", "1", "2"]
    assert "left out: image not readable" in checker.text and "left out: row not usable" in checker.text
    assert "1 answers are unjudged, 2 questions were left out" in checker.text


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"value": 1.0, "strict": 1.0}, []),
        ({"value": 0.5, "strict": 0.5}, []),
        ({"value": 0.4, "strict": 0.4}, ["wrong"]),
        ({"value": 1.0, "strict": 0.0}, ["strict"]),
        ({"value": 0.0, "strict": 1.0}, ["wrong"]),
        ({"value": None, "strict": None, "missing": "unjudged"}, ["unjudged"]),
        ({"value": 0.0, "strict": None, "missing": "unjudged"}, ["wrong", "unjudged"]),
        ({"value": None, "strict": None, "missing": "row not usable (KeyError)"}, ["unasked"]),
        ({"value": 0.0, "strict": 0.0, "stop_reason": "length"}, ["wrong", "cut"]),
        ({"value": 1.0, "strict": 1.0, "stop_reason": "length"}, ["cut"]),
        ({"sample": None, "missing": "image not readable"}, ["unasked"]),
    ],
)
def test_kinds_of_failures(fields, kinds):
    row = {"sample": 0, "stop_reason": "stop", "missing": "", **fields}
    assert kinds_of(row, 0.5) == kinds and set(kinds) <= set(KINDS)


def test_right_is_half_of_the_full_marks():
    assert half_marks(benchmark("chartqa")) == 0.5 and half_marks(benchmark("mm_mt_bench")) == 5.5


def test_failures_have_all_that_is_known(tmp_path):
    row = answer(
        "charxiv", 3, 0.0, images=["images/ab12.png"], prompt="What?", response="It is 12.", parts={"half": 0.25},
        row={"reasoning_a": "x", "answer": [14], "figure": "a"}, judge=[{"prompt": "Same?", "reply": "No."}],
    )  # fmt: skip
    folder = write_folder(tmp_path / "r", {"charxiv": [row, not_asked("charxiv", 4, detail="truncated file")]})
    (folder / "images").mkdir()
    (folder / "images" / "ab12.png").write_bytes(picture())
    _, source = page(folder)
    found = data(source)
    item, other = found["items"]
    assert item["prompt"] == "What?" and item["response"] == "It is 12." and item["judge"] == [["Same?", "No."]]
    assert item["expected"] == [["reasoning_a", "x"], ["answer", "[14]"]] and ["figure", "a"] in item["fields"]
    assert item["facts"] == {
        "value": "0", "strict": "0", "extracted": "3", "prediction": "3", "half": "0.25", "tokens": "12",
        "stopped by": "stop",
    }  # fmt: skip
    assert found["pictures"]["images/ab12.png"].startswith("data:image/") and item["images"] == ["images/ab12.png"]
    assert other["kinds"] == ["unasked"] and other["facts"] == {
        "no figure": "image not readable", "detail": "truncated file",
    }  # fmt: skip
    assert other["response"] is None


def test_page_needs_no_network(tmp_path):
    row = answer("chartqa", 0, 0.0, images=["images/a.png"])
    folder = write_folder(tmp_path / "r", {"chartqa": [row]}, judge=None)
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(picture())
    _, source = page(folder)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', source)
    assert addresses and all(address.startswith("#") for address in addresses)
    assert "http" not in source and "@import" not in source and "url(" not in source
    assert sorted(file.name for file in folder.iterdir()) == [
        "images", "questions", "report.html", "results.json", "settings.json",
    ]  # fmt: skip


def test_text_of_the_model_and_the_data_is_never_markup(tmp_path):
    rows = [
        answer(
            "charxiv", 0, 0.0, 1.0, id=ATTACK, prompt=ATTACK, response=ATTACK + "\x00\x1b[31m\ud800é", extracted=ATTACK,
            prediction=ATTACK, group=ATTACK, parts={ATTACK: 1.0}, row={ATTACK: ATTACK, "answer": ATTACK},
            images=[ATTACK, "../secret.png", "https://example.org/x.png", "images/../../x.png", 7],
            judge=[{"prompt": ATTACK, "reply": ATTACK}],
        ),
        not_asked("charxiv", 1, ATTACK, ATTACK),
    ]  # fmt: skip
    settings = {"checkpoint": ATTACK, "variant": ATTACK, "data": ATTACK, "judge": {ATTACK: ATTACK}}
    checker, source = page(write_folder(tmp_path / "r", {"charxiv": rows}, **settings))
    assert sum(tag == "script" for tag, _ in checker.tags) == 2  # ours
    assert not any(tag == "img" for tag, _ in checker.tags)
    assert "\x00" not in source and "\x1b" not in source
    item = data(source)["items"][0]
    assert item["images"] == []  # an address that is none of the folder's own pictures is not followed
    assert item["response"] == ATTACK + "��[31m?é" and item["prompt"] == ATTACK


def test_a_large_run_is_capped_with_every_kind_in_it(tmp_path):
    rows = [answer("chartqa", i, 0.0) for i in range(300)]
    rows += [answer("chartqa", i, 1.0, 0.0) for i in range(300, 320)]
    rows += [answer("chartqa", i, 1.0, stop_reason="length") for i in range(320, 323)]
    folder = write_folder(tmp_path / "r", {"chartqa": rows})
    found = failures(ResultsFolder(folder), "chartqa", benchmark("chartqa"))
    assert found.answers == 323 and found.counts == {"wrong": 300, "strict": 20, "cut": 3}
    kinds = [kinds[0] for kinds, _ in found.kept]
    assert len(kinds) == MOST and kinds.count("strict") == 20 and kinds.count("cut") == 3
    assert [row["id"] for _, row in found.kept][:2] == ["chartqa-0", "chartqa-1"]
    checker, source = page(folder)
    assert data(source)["tasks"][0] == {
        "task": "chartqa", "row": "ChartQA", "counts": dict(found.counts), "answers": 323, "kept": MOST,
    }  # fmt: skip
    assert f"At most {MOST} answers of each benchmark" in checker.text


def test_pictures_are_capped_and_shared(tmp_path):
    names = [f"images/{index:04}.png" for index in range(MOST)]
    rows = [answer("chartqa", index, 0.0, images=[name, names[0]]) for index, name in enumerate(names)]
    folder = write_folder(tmp_path / "r", {"chartqa": rows, "evochart": [answer("evochart", 0, 0.0, images=names[:1])]})
    (folder / "images").mkdir()
    for name in names[1:]:
        (folder / name).write_bytes(picture())
    (folder / names[0]).write_bytes(b"not a picture")
    _, source = page(folder)
    found = data(source)
    assert len(found["pictures"]) == PICTURES and names[0] not in found["pictures"]
    assert found["items"][-1]["images"] == names[:1]  # the stored one is linked


def test_long_texts_lose_their_middle_and_say_so():
    text = "a" * 9_000 + "b" * 9_000
    found = shortened(text)
    assert found.startswith("aaaa") and found.endswith("bbbb") and "10,000 characters are not in this page" in found
    assert len(found) < 8_100 and shortened("short") == "short"


def test_charts_say_in_words_what_they_show():
    groups = [Bars("mean", 50.0, 2.0, 40.0, 60.0), Bars("A & B", None, None, 30.0, None)]
    source = chart("Some <title>", ("this", "base", "vero"), groups, "k")
    checker = Checker()
    checker.feed(source)
    assert not checker.open
    assert "Some <title>" in checker.text
    assert "mean: this 50.0 ± 2.0, base 40.0, vero 60.0; A & B: this not run, base 30.0, vero not run" in checker.text
    bars = [attributes["class"] for tag, attributes in checker.tags if tag == "rect"]
    assert bars == ["own", "base", "vero", "base"]
    widths = [float(attributes["width"]) for tag, attributes in checker.tags if tag == "rect"]
    assert widths[0] / widths[1] == pytest.approx(50 / 40, rel=1e-2)
    assert sum(attributes.get("class") == "whisker" for _, attributes in checker.tags) == 1


def test_figures_beyond_the_scale_stay_in_the_picture():
    source = chart("t", ("this", "base", "vero"), [Bars("x", 99.0, 8.0, -3.0, 104.0)], "k")
    numbers = [float(number) for number in re.findall(r' (?:x|x1|x2|width)="([^"]+)"', source)]
    assert all(0 <= number <= 420 for number in numbers)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tasks": \ud800'])
def test_broken_results_are_one_sentence(tmp_path, content):
    folder = write_folder(tmp_path / "r", {"chartqa": [answer("chartqa", 0, 1.0)]})
    (folder / "results.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"results\.json"):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("place", [("overall", "score"), ("rows", "ChartQA", "strict"), ("tasks", "chartqa", "score")])
def test_a_figure_that_is_no_number_is_one_sentence(tmp_path, place):
    folder = write_folder(tmp_path / "results", {"chartqa": [answer("chartqa", 0, 1.0)]})
    results = json.loads((folder / "results.json").read_text("utf-8"))
    entry = results
    for name in place[:-1]:
        entry = entry[name]
    entry[place[-1]] = "61.3"
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"results\.json is no results file of this version"):
        write_report(folder)


def test_no_results_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="results"):
        write_report(tmp_path)


def test_broken_rows_are_one_sentence(tmp_path):
    folder = write_folder(tmp_path / "r", {"chartqa": [answer("chartqa", 0, 1.0)]})
    file = folder / "questions" / "chartqa.jsonl"
    file.write_text('{"id": "chartqa-0", ')
    with pytest.raises(UserError, match=r"chartqa\.jsonl"):
        write_report(folder)
    file.write_text(json.dumps(answer("chartqa", 0, "1")))
    with pytest.raises(UserError, match=r"question 'chartqa-0' is broken: value is '1', not a number"):
        write_report(folder)


def test_rows_of_odd_types_are_shown_as_far_as_they_go(tmp_path):
    row = answer("chartqa", 0, 0.0, images=7, judge="no", row=[1], prompt=None, response={"a": 1}, tokens="many")
    _, source = page(write_folder(tmp_path / "r", {"chartqa": [row]}))
    (item,) = data(source)["items"]
    assert item["images"] == item["judge"] == item["fields"] == [] and item["response"] == "{'a': 1}"


def test_a_large_run_is_written_in_seconds(tmp_path):
    """Processor time for 20,000 wrong answers of 2,000 characters; 0.3 s on one core of a cloud machine."""
    rows = [answer("chartqa", index, 0.0, response="x" * 2_000) for index in range(20_000)]
    folder = write_folder(tmp_path / "r", {"chartqa": rows})
    start = time.process_time()
    write_report(folder)
    assert time.process_time() - start < 10
    assert (folder / "report.html").stat().st_size < 1_000_000
