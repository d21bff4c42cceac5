"""Pages are self-contained: they hold their pictures, load nothing, and escape text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright import sync_api

from eval.config import ProtocolConfig
from eval.metrics.bootstrap import Estimate
from eval.report import page
from eval.report.figures import draw_intervals
from eval.report.page import Section, Shot, Table, compare_page, render, result_page, table_page
from eval.result import Result, ScoredPicture, ScoredSubject
from tests.eval.noise import save_noise
from tests.webui.browser import installed_browser

SCRIPT = '<script>alert("x")</script>'
REFERENCE = re.compile(
    r"(?:src|href|action|data)\s*=\s*[\"']?([^\"'\s>]+)|url\(([^)]*)\)|(@import)"
)
KEPT = re.compile(r"^\.(p\d+) \{ background-image: url\(data:image/webp;base64,.{20}", re.M)


class _Elements(HTMLParser):
    """Collect the tags and classes of a page, and check that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.classes: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.classes += (dict(attrs).get("class") or "").split()
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(text: str) -> list[str]:
    """Assert that a page is self-contained; return the names of its pictures in order."""
    elements = _Elements(text)
    assert not elements.tags & {"script", "iframe", "link", "object", "img"}
    for found in REFERENCE.finditer(text):
        inside = ("data:image/webp;base64,", "#")  # a # refers to a part of the same page
        assert (found[1] or found[2] or found[3]).startswith(inside), found[0]
    shown = [name for name in elements.classes if re.fullmatch(r"p\d+", name)]
    assert sorted(KEPT.findall(text)) == sorted(set(shown))
    return shown


def make_result(folder: Path, count: int, name: str = "cup", prompt: str = "a cup") -> Result:
    """Return that many pictures, each nearest to the same real one."""
    drawn = save_noise(folder / "drawn", [f"{i:02}.png" for i in range(count)])
    (real,) = save_noise(folder / "real", ["real.png"], seed=1)
    pictures = [ScoredPicture(path, prompt, {"dino": 0.25, "clip_i": 0.5}, real) for path in drawn]
    extractor = {
        "name": "tiny",
        "library": "lib 1",
        "weights": "0123",
        "preprocess": {"resize_px": 256, "crop_px": 224},
    }
    return Result(
        [ScoredSubject(name, pictures, 1)],
        ProtocolConfig(bootstrap_samples=3),
        {"dino": extractor, "clip": extractor},
        "sks",
        {"cup/real/<b>.png": "unreadable"},
    )


def test_a_result(tmp_path: Path) -> None:
    text = result_page("Scored", make_result(tmp_path, 3))
    # Each is beside the real one, which is in the page once.
    assert check(text) == ["p0", "p1", "p2", "p1", "p3", "p1"]
    assert text.count("data:image/webp;base64,") == 4
    for text_shown in ("DINO 0.250", "CLIP-I 0.500", "3 pictures, 1 real ones.", "center crop 224"):
        assert text_shown in text
    assert "are shown" not in text
    assert "Copies a training picture" not in text  # nothing says so


def test_a_page_begins_with_the_verdict_and_ends_with_the_numbers(tmp_path: Path) -> None:
    result = make_result(tmp_path, page.IN_SIGHT + 2)
    for number, one in enumerate(result.subjects[0].pictures):
        assert isinstance(one.scores, dict)
        one.scores["near_copies"] = float(number == 0)
    text = result_page("Scored", result)
    shown = check(text)
    assert len(shown) == 2 * (page.IN_SIGHT + 2)
    places = [text.index(part) for part in ("Copies a training", "<h2>cup", "2 more", "<table>")]
    assert places == sorted(places)
    (answer,) = result.verdict
    assert answer.answer != "no"
    assert f"<strong>{answer.answer}</strong>" in text


@pytest.mark.parametrize("width", [390, 1440])
def test_no_picture_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    pictures = save_noise(tmp_path, ["0.png", "1.png", "2.png"])
    shot = Shot([(path.stem, path) for path in pictures], "a cup")
    (tmp_path / "page.html").write_text(
        render("Report", tables=[], sections=[Section("Pictures", "", [shot])])
    )
    executable = installed_browser()
    if executable is None:
        pytest.skip("needs a browser: install chromium, such as with apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": width, "height": 800})
        shown.goto((tmp_path / "page.html").as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") == width
        boxes = [each.bounding_box() for each in shown.query_selector_all(".picture")]
        browser.close()
    assert len(boxes) == 3
    assert all(box and 90 < box["width"] == box["height"] <= 192 for box in boxes)


def test_texts_are_escaped(tmp_path: Path) -> None:
    result = make_result(tmp_path, 1, name=f"{SCRIPT}&amp;", prompt=f'{SCRIPT}" onload="x')
    text = result_page(SCRIPT, result)
    check(text)
    assert SCRIPT not in text
    assert text.count("&lt;script&gt;") == 5  # twice the title, twice the name, once the prompt
    assert "&lt;b&gt;.png" in text
    assert "&amp;amp;" in text


def test_long_pages_are_cut_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_SHOWN", 2)
    text = result_page("Scored", make_result(tmp_path, 3))
    assert check(text) == ["p0", "p1", "p2", "p1"]
    assert "3 pictures, 1 real ones. The first 2 of 3 are shown." in text
    assert "are shown" not in result_page("Scored", make_result(tmp_path / "other", 2))


def test_tables_and_plots_alone() -> None:
    rows = [["less a", "DINO"], [f"b{SCRIPT}", "+0.100 [+0.050, +0.150] *"]]
    plot = draw_intervals({"DINO": {f"a & {SCRIPT}": Estimate(0.5, 0.4, 0.6)}})
    text = compare_page([rows, rows], plot)
    assert check(text) == []
    assert SCRIPT not in text
    assert text.count("<svg") == 1
    extractor = make_extractor(crop_px=None)
    alone = table_page("Real", rows, {"dino": extractor})
    assert check(alone) == []
    assert "bicubic resize 32)" in alone


def make_extractor(crop_px: int | None) -> dict:
    preprocess = {"resize_px": 32, "crop_px": crop_px}
    return {"name": "tiny", "library": "lib 1", "weights": "0123", "preprocess": preprocess}


def test_thumbnails_are_stored_small(tmp_path: Path) -> None:
    from PIL import Image

    Image.effect_noise((1200, 600), 90).save(tmp_path / "large.png")
    shots = [Shot([("drawn", tmp_path / "large.png")])]
    text = render("Large", tables=[Table([["a"]])], sections=[Section("Large", "", shots)])
    check(text)
    assert len(text) < 40_000 < (tmp_path / "large.png").stat().st_size
