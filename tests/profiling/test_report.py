"""The page: it stands alone, says what was recorded, and a browser draws it."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
from numformer.models import GPT, GPTConfig
from numformer.profiling.ceilings import Ceilings

NASTY = "</script><script>document.title='taken'</script><img src=x onerror=1>&amp;\"'"
CEILINGS = Ceilings(
    "a <b>processor</b>",
    "v3",
    2,
    100.0,
    50.0,
    200.0,
    {"L1": 400.0, "DRAM": 20.0},
    {"L1": 32768},
    2.0,
    "2026-01-01",
)


@pytest.fixture(scope="module")
def recorded():
    model = GPT(GPTConfig(vocab_size=31, context=32, layers=2, heads=2, width=32), rng=0)
    ids, targets = np.random.default_rng(0).integers(0, 31, (2, 3, 32))
    with nf.profile() as p:
        for _ in range(3):
            with nf.profile.range(NASTY):
                _, backward = model.loss((ids, targets))
                backward()
            p.step()
    return p


@pytest.fixture(scope="module")
def page(recorded, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    recorded.report(path, title=NASTY, ceilings=CEILINGS)
    return path


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_it_stands_alone(page):
    text = page.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    loading = {"link", "img", "iframe", "object", "embed", "base", "audio", "video", "source"}
    assert not loading & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert "src" not in attributes and "href" not in attributes, (tag, attributes)
    assert sum(tag == "script" for tag, _ in reader.tags) == 2, "the data and the program"
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}, "the name of SVG; nothing is fetched"
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|importScripts)\b|@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert "innerHTML" not in text and "document.write" not in text


def test_it_says_what_was_recorded(page, recorded):
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(found)
    records = recorded.records()
    assert data["title"] == NASTY
    assert {row["name"] for row in data["kernels"]} == set(records["name"])
    assert sum(row["calls"] for row in data["kernels"]) == len(records)
    assert sum(row["flops"] for row in data["shapes"]) == records["flops"].sum()
    assert data["accounted"]["wall"] == pytest.approx(recorded.recording.wall_ns * 1e-9)
    assert data["ceilings"]["float32"] == 100.0
    assert any(line["name"].startswith(NASTY) for line in data["layers"])
    assert sum(line["row"]["calls"] for line in data["layers"]) == len(records)
    flame = data["flame"]
    for number, node in enumerate(flame):
        assert node["parent"] < number
        inside = sum(child["seconds"] for child in flame if child["parent"] == number)
        assert inside <= node["seconds"] + 1e-6, "what is inside is not longer"
    assert all(a[0] <= b[0] for a, b in zip(data["memory"], data["memory"][1:], strict=False))
    # Without a script there are the tables, escaped.
    assert "GPT backward/blocks.1/mlp/outer" in text.split("</noscript>")[0]
    assert NASTY not in text


def test_without_ceilings_and_without_calls(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with nf.profile() as p:
        pass
    p.report(tmp_path / "empty.html")
    assert "numformer bench --ceilings" in (tmp_path / "empty.html").read_text(encoding="utf-8")


def _browser():
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium or Chrome is installed to draw the page with")


def _draw(path, tmp_path, *options):
    command = [_browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    done = subprocess.run([*command, *options, path.as_uri()], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout.decode("utf-8", errors="replace")


def test_a_browser_draws_it(page, recorded, tmp_path):
    drawn = _draw(page, tmp_path, "--dump-dom")
    assert 'data-drawn="yes"' in drawn, "the script ran to its end"
    assert "<title>" in drawn and "<title>taken</title>" not in drawn
    shapes = {(r["name"], tuple(r["shape"])) for r in recorded.records() if r["flops"] > 0}
    assert drawn.count("<circle") == len(shapes), "a dot for each kernel and shape"
    for label in ("roofline plot", "flame view", "memory over time"):
        assert f'aria-label="{label}"' in drawn or label == "memory over time"
    assert drawn.count('class="tile"') == 6 and "reading" in drawn
    assert "<img" not in drawn, "names are text"
    assert "float32 100 GFLOP/s" in drawn and "bfloat16" not in drawn.split("roofline plot")[1].split("</svg>")[0]
    _draw(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,1600")
    picture = (tmp_path / "page.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 20_000, "not an empty page"


@pytest.mark.parametrize(("bfloat16", "drawn"), [(2000.0, "yes"), (40.0, "yes"), (101.0, "no")])
def test_a_roof_of_another_dtype(tmp_path, bfloat16, drawn):
    """It lies inside the picture, above or below float32's; one that is nearly the same would only hide that."""
    x = np.ones((64, 64), ml_dtypes.bfloat16)
    with nf.profile() as p:
        nf.matmul(x, x)
    p.report(tmp_path / "page.html", ceilings=dataclasses.replace(CEILINGS, bfloat16=bfloat16))
    picture = _draw(tmp_path / "page.html", tmp_path, "--dump-dom").split("roofline plot")[1].split("</svg>")[0]
    labels = re.findall(r'<text[^>]* y="([-\d.]+)"[^>]*>bfloat16 (\d+)[^<]*</text>', picture)
    assert len(labels) == (drawn == "yes")
    for y, rate in labels:
        assert 0 < float(y) < 360 and float(rate) == bfloat16
