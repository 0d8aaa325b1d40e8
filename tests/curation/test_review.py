"""The review sheet: which rows are drawn, what the page shows, and what a browser keeps and exports."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.curation.curation_rows import picture, row, write
from tests.page_checker import Checker, browse, needs_browser
from vero_jax.curation.__main__ import main
from vero_jax.curation.review import sample, write_sheet
from vero_jax.curation.rows import Rows

ATTACK = '</div></script><script>document.title="owned"</script><img src=x onerror=alert(1)> & "quoted" $title'


def sheet(tmp_path: Path, rows: list, *options: str) -> tuple[Path, Checker]:
    source = write(tmp_path / "in", rows)
    out = tmp_path / "sheet"
    assert main(["review", str(source), "--out", str(out), *options]) == 0
    checker = Checker()
    checker.feed((out / "index.html").read_text())
    checker.close()
    assert not checker.open
    return out / "index.html", checker


def drawn(rows: list, tmp_path: Path, per_source: int, seed: int) -> dict[str, list[int]]:
    return sample(Rows(write(tmp_path, rows)), per_source, seed)


def test_the_sample_is_seeded_without_replacement_and_of_each_source(tmp_path: Path) -> None:
    rows = [row(n, source=name) for n in range(40) for name in ("a", "b")] + [row(0, source="c")]
    found = drawn(rows, tmp_path, 10, 0)
    assert {name: len(set(places)) for name, places in found.items()} == {"a": 10, "b": 10, "c": 1}
    assert found == drawn(rows, tmp_path, 10, 0) != drawn(rows, tmp_path, 10, 1)
    assert found["a"] != [place - 1 for place in found["b"]]
    alone = drawn([entry for entry in rows if entry["data_source"] == "a"], tmp_path / "a", 10, 0)
    assert alone["a"] == [place // 2 for place in found["a"]]  # whatever other sources there are


def test_every_row_is_drawn_equally_often(tmp_path: Path) -> None:
    rows = list(Rows(write(tmp_path, [row(n) for n in range(20)])))
    counts = Counter(place for seed in range(400) for place in sample(rows, 5, seed)["pets"])
    assert len(counts) == 20 and min(counts.values()) > 60 and max(counts.values()) < 140  # 100 expected


def test_the_page_shows_what_a_reviewer_needs(tmp_path: Path) -> None:
    box = '[{"bbox_2d": [5, 6, 25, 20], "label": "x"}]'
    rows = [
        row(0, question="How many?\nA. 1\nB. 2", truth="B", answer="(B) 2", tolerance=0.05),
        row(1, source="boxes", truth=box, reward_type="grounding"),
    ]
    page, checker = sheet(tmp_path, rows)
    for part in ("pets", "chart_ocr", "string_match", "pets_0", "A. 1\nB. 2", "(B) 2", "0.05", "40 × 30", "limit 5 %"):
        assert part in checker.text, part
    assert [attributes for tag, attributes in checker.tags if tag == "rect"] == [
        {"x": "5", "y": "6", "width": "20", "height": "14"}
    ]
    images = [attributes["src"] for tag, attributes in checker.tags if tag == "img"]
    assert len(images) == 2 and all((page.parent / name).is_file() for name in images)
    assert "http" not in page.read_text() and "@import" not in page.read_text()


def test_text_of_the_data_is_never_markup(tmp_path: Path) -> None:
    page, checker = sheet(tmp_path, [row(0, question=ATTACK, truth=ATTACK, source="s<b>", answer="\x00\x1b[31m")])
    assert sum(tag == "script" for tag, _ in checker.tags) == 1 and sum(tag == "img" for tag, _ in checker.tags) == 1
    assert checker.text.count(ATTACK) == 2
    assert "\x00" not in page.read_text() and "\x1b" not in page.read_text()


def test_pictures_that_browsers_do_not_show_become_png_and_broken_ones_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    source = write(folder, [row(0), row(1), row(2)])
    (folder / "pictures/pets_0.png").write_bytes(picture(kind="TIFF", mode="CMYK"))
    (folder / "pictures/pets_1.png").write_bytes(picture(size=(300, 300))[:80])
    out = tmp_path / "sheet"
    out.mkdir()
    write_sheet(out, list(Rows(source)), title="x")
    page = (out / "index.html").read_text()
    assert page.count("image cannot be shown") == 1
    assert sorted(path.suffix for path in (out / "images").iterdir()) == [".png", ".png"]
    assert (out / "images/00000_0.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--per-source", "0"), "--per-source is 0"),
        (("--limit", "2"), "--limit is 2"),
        (("--sources", "pet"), "--sources names 'pet'"),
        (("--splits", "val"), "no row of"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in", [row(0) | {"extra_info": row(0)["extra_info"] | {"split": "train"}}])
    assert main(["review", str(source), "--out", str(tmp_path / "sheet"), *options]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "sheet").exists()


LOOK = """
    const look = () => ({
      reviewed: document.getElementById("reviewed").textContent,
      errors: document.getElementById("errors").textContent,
      share: document.getElementById("share").textContent,
      table: [...document.querySelectorAll("#table tr")].map((line) => [...line.cells].map((cell) => cell.textContent)),
      shown: [...document.querySelectorAll(".group:not([hidden])")].map((group) => group.dataset.id),
      ticks: [...document.querySelectorAll(".group input")].filter((box) => box.checked).length,
    });
    const tick = (row, name) => document.querySelectorAll(".group")[row].querySelector(`[data-name=${name}]`).click();
    const set = (id, value) => {
      const box = document.getElementById(id);
      box.value = value;
      box.dispatchEvent(new Event("change"));
    };
"""


@needs_browser
def test_a_browser_counts_filters_exports_and_keeps_the_ticks(tmp_path: Path) -> None:
    page, _ = sheet(tmp_path, [row(n, source="pets") for n in range(2)] + [row(0, source="cars")])
    profile = tmp_path / "profile"
    seen = browse(
        page,
        LOOK
        + """
        const report = { before: look() };
        document.querySelectorAll(".all")[0].click();
        tick(1, "correct");
        tick(2, "reviewed");
        report.after = look();
        set("show", "wrong");
        report.wrong = look().shown;
        set("show", "open");
        report.open = look().shown;
        set("show", "");
        set("source", "pets");
        report.pets = look().shown;
        set("source", "");
        report.exported = exported();
        let saved = "";
        URL.createObjectURL = (blob) => { saved = blob.type; return "blob:none"; };
        document.getElementById("export").click();
        report.saved = saved;
        report.stored = Object.keys(localStorage).length;
        return report;
        """,
        profile,
    )
    assert seen["before"]["share"] == "-" and seen["before"]["reviewed"] == "0"
    assert seen["after"]["table"] == [
        ["cars", "1", "1", "0", "0.0 %", "within"],
        ["pets", "2", "2", "2", "100.0 %", "over"],
    ]
    assert (seen["after"]["reviewed"], seen["after"]["errors"], seen["after"]["share"]) == ("3", "2", "66.7 %")
    assert seen["wrong"] == ["pets_0", "pets_1"] and seen["open"] == [] and seen["pets"] == ["pets_0", "pets_1"]
    rows = seen["exported"]["rows"]
    assert rows[0] == {
        "id": "cars_0", "source": "cars", "split": "train", "reviewed": True, "correct": True, "one_answer": True,
        "verifiable": True,
    }  # fmt: skip
    assert [entry["correct"] for entry in rows] == [True, True, False]
    assert seen["exported"]["sources"]["pets"]["share"] == 1 and seen["exported"]["limit"] == 0.05
    assert seen["saved"] == "application/json" and seen["stored"] == 1


@needs_browser
def test_a_browser_finds_its_ticks_again_and_shows_the_pictures(tmp_path: Path) -> None:
    page, _ = sheet(tmp_path, [row(n) for n in range(2)])
    source = page.read_text()
    key = re.search(r'const PLACE = "(.*?)"', source)
    first = re.search(r'data-key="(\w+)"', source)
    assert key and first
    # A browser writes its storage when it likes: the page is given what an earlier visit would have left.
    state = json.dumps({first[1]: {"correct": True, "one_answer": True, "verifiable": False, "reviewed": True}})
    before = (
        f'<script>localStorage.setItem({json.dumps(key[1])}, {json.dumps(state)});</script>\n<script>\n"use strict"'
    )
    page.write_text(source.replace('<script>\n"use strict"', before))
    seen = browse(
        page,
        LOOK
        + """
        const wide = document.documentElement.scrollWidth <= window.innerWidth;
        return { ...look(), wide, marks: document.querySelectorAll(".wrong").length };
        """,
        tmp_path / "profile",
    )
    assert (seen["reviewed"], seen["errors"], seen["ticks"], seen["marks"]) == ("1", "1", 3, 1) and seen["wide"]


@needs_browser
def test_a_page_without_storage_still_works_and_says_so(tmp_path: Path) -> None:
    page, _ = sheet(tmp_path, [row(0)])
    block = (
        '<script>Object.defineProperty(window, "localStorage", { get() { throw new Error("no"); } });</script>\n'
        '<script>\n"use strict"'
    )
    page.write_text(page.read_text().replace('<script>\n"use strict"', block))
    script = LOOK + 'document.querySelectorAll(".all")[0].click();'
    seen = browse(page, script + 'return { ...look(), note: !document.getElementById("note").hidden };', tmp_path / "p")
    assert seen["note"] and seen["reviewed"] == "1" and seen["errors"] == "0"
