"""A person's whole way through the studio, in a real browser, on the embedded base.

With `STUDIO_PICTURES=docs/studio` the pictures of `docs/webui.md` are taken on the way.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.webui.browser import ROOT, Server, installed_browser, served

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
from playwright.sync_api import Browser, Page, expect  # noqa: E402

PATIENCE_MS = 240_000
STEPS = int(os.environ.get("STUDIO_STEPS", "20"))
TAKEN = os.environ.get("STUDIO_PICTURES")
CAT = sorted((ROOT / "datasets" / "concepts" / "striped_cat").glob("*.png"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = installed_browser()
    if path is None:
        pytest.skip("needs a browser: install chromium, such as with apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("journey")
    with served(folder / "studio", "--runs", str(folder / "runs")) as server:
        yield server


@pytest.fixture(scope="module")
def page(browser: Browser, server: Server) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    yield page
    assert not errors
    page.close()


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def take(page: Page, name: str) -> None:
    """Keep a picture of the page, if they are wanted."""
    if TAKEN:
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        page.screenshot(path=ROOT / TAKEN / f"{name}.png", full_page=True)


def ask_for_training(page: Page, name: str, steps: int) -> None:
    open_tab(page, "Concepts")
    page.get_by_label("Name").first.fill(name)
    page.get_by_label("Class").fill("toy")
    if not page.get_by_label("Steps").is_visible():
        page.get_by_text("Advanced").click()
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_label("Keep the class what it is").uncheck()
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("tab", name="Progress")).to_have_attribute("aria-selected", "true")


def test_pictures_are_taken_and_wrong_files_are_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("text")
    files = page.locator("#files input[type=file]")
    files.set_input_files([*CAT[:4], tmp_path / "empty.png", tmp_path / "text.png"])
    expect(page.get_by_text("empty.png is empty")).to_be_visible()
    expect(page.get_by_text("text.png is not a picture")).to_be_visible()
    crops = page.locator(".pictures button.thumbnail-item")
    expect(crops).to_have_count(4)
    page.get_by_label("Class").fill("toy")
    expect(page.get_by_text(re.compile("Takes about"))).to_be_visible()
    before = crops.nth(1).locator("img").get_attribute("src")
    crops.nth(1).click()
    zoom = page.get_by_label("number input for Zoom")
    zoom.fill("1.5")
    zoom.press("Enter")
    expect(crops.nth(1).locator("img")).not_to_have_attribute("src", before or "")
    for close in page.get_by_label("Close").all():
        close.click()
    take(page, "concepts")


def test_a_training_goes_on_while_the_page_is_reloaded(page: Page) -> None:
    ask_for_training(page, "<i>Milo</i>", STEPS)
    expect(page.get_by_text("<i>Milo</i>").first).to_be_visible()
    expect(page.get_by_text(re.compile("(Preparing|Training)")).first).to_be_visible()
    page.reload()
    open_tab(page, "Progress")
    expect(page.get_by_role("heading", name="<i>Milo</i>")).to_be_visible()
    expect(page.get_by_text(f"{STEPS} of {STEPS}").first).to_be_visible()
    expect(page.get_by_text("Finished").first).to_be_visible()
    expect(page.get_by_text("CLIP-T").first).to_be_visible()
    take(page, "progress")
