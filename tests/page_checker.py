"""What tests of pages share: a parser that fails on tags out of order, and a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

VOID = {"meta", "img", "br", "input", "link"}


class Checker(HTMLParser):
    """Collects text, and fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def browse(path: Path, script: str, tmp_path: Path, width: int = 800) -> dict:
    """Runs the page in headless Chromium, in a window of this width, then a script that returns an object.

    The copy with the script lies beside the page, so that the page's relative addresses hold.
    """
    probe = path.with_name("probe.html")
    extra = (
        "<script>window.onerror = (m) => { document.title = m };"
        f"const probe = (() => {{ {script} }})();"
        "document.body.innerHTML = '';"
        "const out = document.createElement('pre'); out.id = 'probe'; out.textContent = JSON.stringify(probe);"
        "document.body.appendChild(out);</script></body>"
    )
    probe.write_text(path.read_text(encoding="utf-8").replace("</body>", extra), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
            f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--window-size={width},900", probe.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    return json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
