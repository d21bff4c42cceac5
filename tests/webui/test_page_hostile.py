"""The page in a real browser with what others send: names that are HTML, and hasty uploads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
from playwright.sync_api import Browser, Page, expect

from tests.webui.browser import PATIENCE_MS, Server
from tests.webui.concepts import write

EVIL = '<img src="x" onerror="window.hacked=1">'


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page.goto(server.url)
    yield page
    page.close()


def test_names_from_a_file_are_text_on_every_tab(page: Page, tmp_path: Path) -> None:
    texts = {"token": EVIL, "class_name": EVIL, "instance_prompt": f"a photo of {EVIL}"}
    file = write(tmp_path / "evil.safetensors", of=EVIL, method=EVIL, **texts)

    def open_tab(name: str) -> None:
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")

    def assert_text() -> None:
        expect(panel.get_by_text(EVIL).first).to_be_visible()
        assert page.locator("img[src=x]").count() == 0
        assert page.evaluate("window.hacked") is None

    panel = page.locator("[role=tabpanel]:visible")
    open_tab("Library")
    panel.locator("input[type=file]").first.set_input_files(file)
    expect(page.get_by_text(re.compile("This concept was made for"))).to_be_visible()
    expect(panel.get_by_role("heading", name="evil")).to_be_visible()
    panel.get_by_label("Name").fill(EVIL)
    panel.get_by_role("button", name="Rename").click()
    expect(panel.get_by_role("heading", name=EVIL)).to_be_visible()
    assert_text()
    panel.get_by_role("button", name="Play with it").click()
    expect(page.get_by_role("tab", name="Play")).to_have_attribute("aria-selected", "true")
    assert_text()
    open_tab("Library")
    panel.get_by_role("button", name="Score it").click()
    expect(page.get_by_role("tab", name="Score")).to_have_attribute("aria-selected", "true")
    assert_text()
    open_tab("Library")
    panel.get_by_role("button", name="Delete").click()
    expect(panel.get_by_role("button", name=re.compile("is deleted. Undo"))).to_be_visible()
    assert page.evaluate("window.hacked") is None


def test_an_upload_beside_another_one_is_taken_too(page: Page, tmp_path: Path) -> None:
    for number in range(4):  # large enough for a second of work
        image = Image.effect_noise((2600, 2600), 90).convert("RGB")
        image.save(tmp_path / f"hasty-{number}.jpg", quality=50)
    *first, other = sorted(tmp_path.glob("hasty-*.jpg"))
    files = page.locator("#files")
    expect(page.get_by_role("button", name="Teach", exact=True)).to_be_visible()
    files.locator("input[type=file]").set_input_files(first)
    expect(files).to_contain_text("hasty-0")
    expect(files).not_to_contain_text("Uploading")
    files.locator("input[type=file]").set_input_files(other)
    for path in (*first, other):
        expect(page.get_by_text(re.compile(rf"^\d+ · {path.name}$"))).to_have_count(1)
