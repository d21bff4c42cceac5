"""The page in a real browser: what it shows, and that it acts on nothing else.

The tests share a studio with two stopped trainings; none of them trains.
"""

import re
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
from playwright.sync_api import Browser, Locator, Page, expect

from tests.webui.browser import NEWER, OLDER, Server


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def panel(page: Page) -> Locator:
    return page.locator("[role=tabpanel]:visible")


def test_a_picked_training_is_shown_at_once_and_buttons_act_on_it(page: Page) -> None:
    open_tab(page, "Progress")
    trainings = panel(page).get_by_role("radio")
    expect(panel(page).get_by_role("heading", name=NEWER)).to_be_visible()
    expect(panel(page).locator(".pictures:visible")).to_have_count(2)
    panel(page).get_by_role("radio", name=re.compile("older")).check()
    expect(panel(page).get_by_role("heading", name=OLDER)).to_be_visible()
    expect(panel(page).locator(".pictures:visible")).to_have_count(0)
    panel(page).get_by_role("button", name="Remove", exact=True).click()
    expect(panel(page).get_by_role("heading", name=NEWER)).to_be_visible()
    expect(trainings).to_have_count(1)
    panel(page).get_by_role("button", name=re.compile("Bring back")).click()
    expect(trainings).to_have_count(2)


def in_view(page: Page, button: Locator) -> bool:
    box, view = button.bounding_box(), page.viewport_size
    assert box
    assert view
    return box["y"] >= 0 and box["y"] + box["height"] <= view["height"]


def test_an_example_fills_in_everything_and_teach_stays_in_sight(
    browser: Browser, server: Server
) -> None:
    for width, height in ((1440, 900), (390, 844)):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(server.url)
        teach = page.get_by_role("button", name="Teach", exact=True)
        expect(page.get_by_label("Rare word")).to_have_value("sks")
        page.get_by_role("button", name="dotted rabbit").click()
        expect(page.locator(".pictures button.thumbnail-item")).to_have_count(5)
        expect(page.get_by_label("Name").first).to_have_value("dotted rabbit")
        expect(page.get_by_label("Class").first).to_have_value("rabbit")
        expect(page.get_by_text("These pictures look fine.")).to_be_visible()
        expect(page.get_by_text(re.compile("Takes about"))).to_be_visible()
        expect(page.locator(".problem")).to_have_count(0)
        page.evaluate("scrollTo(0, 0)")
        assert in_view(page, teach)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert in_view(page, teach)
        page.close()


def test_what_is_wrong_stands_beside_its_field_and_the_form_outlives_a_reload(
    page: Page, tmp_path: Path
) -> None:
    page.reload()
    token = page.get_by_label("Rare word")
    expect(page.get_by_label("Class").first).to_have_value("rabbit")  # of the draft
    page.get_by_label("Class").first.fill("")
    token.fill("two words")
    page.get_by_role("button", name="Teach", exact=True).click()
    wrong = page.locator(".problem")
    expect(wrong).to_have_text([re.compile("Say in one to five words")])
    page.get_by_label("Class").first.fill("rabbit")
    page.get_by_label("Class").first.press("Tab")
    expect(wrong).to_have_text([re.compile("must be one word")])
    expect(token).to_have_value("two words")
    token.fill("zwx")
    token.press("Tab")
    expect(wrong).to_have_count(0)
    Image.effect_noise((80, 80), 90).save(tmp_path / "mine.png")
    page.locator("#files input[type=file]").set_input_files(tmp_path / "mine.png")
    crops = page.locator(".pictures button.thumbnail-item")
    expect(crops).to_have_count(6)
    page.wait_for_timeout(500)
    page.reload()
    expect(crops).to_have_count(6)
    expect(token).to_have_value("zwx")
    expect(page.get_by_label("Class").first).to_have_value("rabbit")
