"""Sample pages: everything is shown, nothing is executed, and a real browser filters and sorts them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_groups import make_group, one_group_per_domain, picture

from tests.page_checker import Checker, browse, needs_browser
from vero_jax.runtime.pages import thumbnail, write_index, write_sample_page
from vero_jax.types import DOMAINS


def read(path: Path) -> tuple[Checker, str]:
    source = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(source)
    checker.close()
    assert not checker.open
    return checker, source


def page(tmp_path: Path, groups, **options) -> tuple[Checker, str]:
    path = tmp_path / "step_000020.html"
    write_sample_page(path, groups, **{"step": 20, "run_name": "mini", **options})
    return read(path)


def test_page_shows_every_part_of_a_group(tmp_path):
    checker, _ = page(tmp_path, [make_group()])
    for part in (
        "stem", "shapes", "numeric", "stem-0", "How many shapes are there?", "gold", "reward 0.5", "accuracy", "format",
        "overlong", "advantage", "+0.5", "−0.5", "mean logprob", "−0.25", "stop", "length", "three", "100 × 60",
        "seen as 96 × 64", "40 tokens", "image 1",
    ):  # fmt: skip
        assert part in checker.text, part
    assert "  one  blue,\n  one red" in checker.text  # whitespace kept


def test_page_needs_no_network(tmp_path):
    _, source = page(tmp_path, one_group_per_domain())
    addresses = re.findall(r'(?:src|href)="([^"]*)"', source)
    assert addresses and all(a.startswith("data:image/") or a == "index.html" for a in addresses)
    assert "http" not in source and "@import" not in source and "url(" not in source


def test_text_of_the_model_and_the_data_is_never_markup(tmp_path):
    attack = '</div></script><script>document.title="owned"</script><img src=x onerror=alert(1)> & "quoted" $title'
    group = make_group(attack, question=attack, answers=(attack, "\x00\x1b[31m\ud800é"), totals=(1.0, 0.0))
    checker, source = page(tmp_path, [group], run_name=attack, headline={attack: 1.0})
    assert sum(tag == "script" for tag, _ in checker.tags) == 2  # ours
    assert sum(tag == "img" for tag, _ in checker.tags) == 1
    assert checker.text.count(attack) >= 4
    assert "\x00" not in source and "\x1b" not in source and "é" in source
    write_index(tmp_path, attack)
    checker, _ = read(tmp_path / "index.html")
    assert not any(tag in ("script", "img") for tag, _ in checker.tags)


def test_images_are_inside_and_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    checker, source = page(
        tmp_path, [make_group(question="<image><image>Which?", images=(buffer.getvalue(), picture()))]
    )
    sources = [attributes["src"] for tag, attributes in checker.tags if tag == "img"]
    assert len(sources) == 2 and len(source) < 600_000
    with Image.open(io.BytesIO(base64.b64decode(sources[0].partition("base64,")[2]))) as shown:
        assert max(shown.size) == 640 and abs(shown.width / shown.height - 4 / 3) < 0.01


def test_transparent_pictures_are_on_white():
    content = base64.b64decode(thumbnail(picture(mode="RGBA")).partition("base64,")[2])
    with Image.open(io.BytesIO(content)) as shown:
        assert shown.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("data", [b"", b"not a picture", picture()[:60], picture(kind="JPEG", size=(300, 300))[:900]])
def test_broken_picture_is_said_and_the_page_is_written(tmp_path, data):
    checker, _ = page(tmp_path, [make_group(images=(data,))])
    assert "image cannot be shown" in checker.text


def test_missing_rewards_and_unscored_groups_are_shown_as_such(tmp_path):
    groups = [make_group(missing="timeout after 5 s"), make_group("chart_ocr", scored=False), make_group(images=())]
    checker, _ = page(tmp_path, groups)
    assert "no score: timeout after 5 s" in checker.text and "no image" in checker.text
    assert "nan" not in checker.text.lower()


def test_empty_page(tmp_path):
    checker, _ = page(tmp_path, [])
    assert "No groups were kept" in checker.text


def test_page_may_be_written_again(tmp_path):
    page(tmp_path, [make_group()])
    checker, _ = page(tmp_path, [make_group("chart_ocr")])
    assert "chart_ocr-0" in checker.text and "stem-0" not in checker.text
    assert [file.name for file in tmp_path.iterdir()] == ["step_000020.html"]


def test_index_lists_steps_newest_first_with_their_numbers(tmp_path):
    write_sample_page(tmp_path / "step_000020.html", [make_group()], step=20)
    write_sample_page(
        tmp_path / "step_000040.html", [make_group()], step=40, headline={"reward": 0.75, "accuracy": None}
    )
    (tmp_path / "step_broken.html").write_text("<p>half a page")
    write_index(tmp_path, "mini")
    checker, source = read(tmp_path / "index.html")
    assert re.findall(r'href="(step_\d+\.html)">(\d+)<', source) == [
        ("step_000040.html", "40"),
        ("step_000020.html", "20"),
    ]
    assert "0.75" in checker.text and "response length" in checker.text


@needs_browser
def test_browser_filters_and_sorts(tmp_path):
    groups = one_group_per_domain()
    path = tmp_path / "step_000020.html"
    write_sample_page(path, groups, step=20)
    result = browse(
        path,
        """
        const set = (id, value) => {
          const box = document.getElementById(id);
          box.value = value;
          box.dispatchEvent(new Event("change"));
        };
        const visible = () => [...document.querySelectorAll(".group:not([hidden])")].map((g) => g.dataset.domain);
        const firsts = () => [...document.querySelectorAll(".group:not([hidden])")]
          .map((g) => g.querySelector(".response").dataset.reward);
        const report = { options: [...document.getElementById("domain").options].map((o) => o.value) };
        report.all = visible();
        set("domain", "stem");
        report.stem = visible();
        report.shown = document.getElementById("shown").textContent;
        set("domain", "");
        set("order", "best");
        report.best = visible();
        report.bestFirst = firsts();
        set("order", "worst");
        report.worst = visible();
        report.worstFirst = firsts();
        set("order", "asked");
        report.again = visible();
        report.images = [...document.images].every((i) => i.complete && i.naturalWidth > 0);
        report.wide = document.documentElement.scrollWidth <= window.innerWidth;
        return report;
        """,
        tmp_path,
    )
    means = {g.prompt.example.domain: float(np.mean([s.total for s in g.scores])) for g in groups}
    assert result["options"] == ["", *sorted(DOMAINS)]
    assert result["all"] == result["again"] == list(DOMAINS)
    assert result["stem"] == ["stem"] and result["shown"] == "1"
    assert result["best"] == sorted(DOMAINS, key=lambda d: (-round(means[d], 9), DOMAINS.index(d)))
    assert result["worst"] == sorted(DOMAINS, key=lambda d: (round(means[d], 9), DOMAINS.index(d)))
    best = {g.prompt.example.domain: max(s.total for s in g.scores) for g in groups}
    assert [float(x) for x in result["bestFirst"]] == pytest.approx([best[d] for d in result["best"]])
    assert result["images"] and result["wide"]


@needs_browser
def test_browser_runs_nothing_of_the_text(tmp_path):
    attack = "</div></script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    path = tmp_path / "step_000020.html"
    write_sample_page(path, [make_group(attack, question=attack, answers=(attack, attack))], step=20, run_name="mini")
    result = browse(
        path,
        "return { title: document.title, answer: document.querySelector('.answer').textContent,"
        " broken: document.images.length }",
        tmp_path,
    )
    assert result == {"title": "mini, step 20", "answer": attack, "broken": 1}
