"""The page in a real browser: what it shows, and that it acts on nothing else.

The tests share a studio with a failed and a stopped training; none of them trains.
"""

import re
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
from playwright.sync_api import Browser, Locator, Page, expect

from tests.webui.browser import (
    NEWER,
    OLDER,
    Server,
    assert_accessible,
    assert_accessible_everywhere,
)

TABS = ("Teach", "Progress", "Play", "Library", "Score")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def panel(page: Page) -> Locator:
    return page.locator("[role=tabpanel]:visible")


def test_a_picked_training_is_shown_at_once_and_buttons_act_on_it(page: Page) -> None:
    open_tab(page, "Progress")
    trainings = panel(page).get_by_role("radio")
    expect(panel(page).get_by_role("heading", name=NEWER)).to_be_visible()
    frames = panel(page).locator(".film [data-step]")
    expect(frames).to_have_count(2)
    panel(page).get_by_role("radio", name=re.compile("older")).check()
    expect(panel(page).get_by_role("heading", name=OLDER)).to_be_visible()
    expect(frames).to_have_count(0)
    remove = panel(page).get_by_role("button", name="Remove", exact=True)
    expect(remove).to_be_hidden()
    panel(page).get_by_role("button", name="More").click()
    remove.click()
    expect(panel(page).get_by_role("heading", name=NEWER)).to_be_visible()
    expect(trainings).to_have_count(1)
    panel(page).get_by_role("button", name=re.compile("Bring back")).click()
    expect(trainings).to_have_count(2)


def test_a_page_without_a_training_and_one_that_failed(page: Page) -> None:
    open_tab(page, "Progress")
    restore = panel(page).get_by_role("button", name=re.compile("Bring back"))
    for name, word in ((NEWER, "newer"), (OLDER, "older")):
        panel(page).get_by_role("radio", name=re.compile(word)).check()
        expect(panel(page).get_by_role("heading", name=name)).to_be_visible()
        panel(page).get_by_role("button", name="More").click()
        panel(page).get_by_role("button", name="Remove", exact=True).click()
        expect(restore).to_contain_text(name)
    expect(panel(page).get_by_text("No training yet")).to_be_visible()
    assert_accessible_everywhere(page, "nothing is there")
    for name, word in ((OLDER, "older"), (NEWER, "newer")):
        expect(restore).to_contain_text(name)
        restore.click()
        expect(panel(page).get_by_role("radio", name=re.compile(word))).to_be_visible()
    panel(page).get_by_role("radio", name=re.compile("older")).check()
    expect(panel(page).get_by_text("Failed.")).to_be_visible()
    assert_accessible_everywhere(page, "a training failed")
    panel(page).get_by_role("radio", name=re.compile("newer")).check()
    expect(panel(page).get_by_role("heading", name=NEWER)).to_be_visible()


def test_a_frame_is_shown_beside_the_base_and_arrows_move_along_the_film(page: Page) -> None:
    open_tab(page, "Progress")
    main = panel(page).locator(".head > button:visible")
    expect(main).to_have_text(["Resume"])
    first = panel(page).get_by_role("button", name="Step 10", exact=True)
    large = panel(page).locator(".pair figcaption")
    expect(large).to_have_text(["Before the base", "After step 20"])
    first.click()
    expect(large).to_have_text(["Before the base", "After step 10"])
    expect(first).to_have_attribute("aria-pressed", "true")
    loaded = "one => one.complete && one.naturalWidth > 0"
    assert all(image.evaluate(loaded) for image in panel(page).locator(".pair img").all())
    first.press("ArrowRight")
    expect(large).to_have_text(["Before the base", "After step 20"])
    expect(panel(page).get_by_role("button", name="Step 20", exact=True)).to_be_focused()


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
        expect(page.get_by_label("Class").first).to_have_value("toy")  # as its captions say
        expect(page.get_by_text("These pictures look fine.")).to_be_visible()
        expect(page.get_by_text(re.compile("Takes about"))).to_be_visible()
        expect(page.locator(".problem")).to_have_count(0)
        page.evaluate("scrollTo(0, 0)")
        assert in_view(page, teach)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert in_view(page, teach)
        page.close()


def test_what_is_wrong_stands_beside_its_field_and_the_form_outlives_a_reload(
    page: Page, server: Server, tmp_path: Path
) -> None:
    page.goto("about:blank")
    page.goto(server.url)
    token = page.get_by_label("Rare word")
    expect(token).to_have_value("sks")
    expect(page.get_by_label("Class").first).to_have_value("")  # other browsers have other drafts
    page.get_by_role("button", name="dotted rabbit").click()
    expect(page.get_by_label("Class").first).to_have_value("toy")
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


def test_every_text_has_enough_contrast_in_light_and_dark(browser: Browser, server: Server) -> None:
    for theme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{server.url}?__theme={theme}")
        for tab in TABS:
            open_tab(page, tab)
            expect(panel(page)).to_be_visible()
            page.wait_for_timeout(700)
            assert_accessible(page, f"{tab} in {theme}")
        page.close()


def test_play_keeps_the_words_of_its_concepts_in_the_prompt(page: Page, server: Server) -> None:
    page.goto("about:blank")
    page.goto(f"{server.url}#play")
    expect(page.get_by_role("tab", name="Play")).to_have_attribute("aria-selected", "true")
    prompt = panel(page).get_by_label("Prompt", exact=True)
    expect(panel(page).get_by_role("checkbox", name="dotty")).to_be_checked()
    expect(prompt).to_have_value("a photo of a dax toy")
    expect(panel(page).get_by_text(re.compile(r"\d+ of 30 tokens"))).to_be_visible()
    prompt.fill("a toy in the snow")
    expect(panel(page).get_by_text("“dax toy” is not in your prompt")).to_be_visible()
    panel(page).get_by_role("button", name="Add dax toy").click()
    expect(prompt).to_have_value("a dax toy in the snow")
    expect(panel(page).get_by_text("is not in your prompt")).to_have_count(0)
    panel(page).get_by_role("checkbox", name="dotty").uncheck()
    expect(prompt).to_have_value("a toy in the snow")
    prompt.fill("toy " * 40 + "and what is not read")
    expect(panel(page).locator(".cut s")).to_have_text(re.compile("and what is not read$"))
    draw = page.get_by_role("button", name="Draw", exact=True)
    assert in_view(page, draw)
    prompt.fill("")
    draw.click()
    expect(panel(page).locator(".problem")).to_have_text(re.compile("The prompt is empty"))
    expect(panel(page).get_by_text("Error", exact=True).locator("visible=true")).to_have_count(0)
    prompt.press_sequentially("a toy at night")
    expect(panel(page).locator(".problem")).to_have_count(0)
    page.wait_for_timeout(500)
    page.reload()
    expect(prompt).to_have_value(
        "a dax toy at night"
    )  # typed before, with the chosen concept's word


def test_every_tab_has_an_address_and_the_back_button_goes_back(page: Page) -> None:
    open_tab(page, "Library")
    page.wait_for_url("**#library")
    search = panel(page).get_by_label("Search")
    cards = panel(page).locator(".cards button img")
    expect(cards).to_have_count(1)
    search.press_sequentially("dotty zebra")
    expect(panel(page).get_by_text("No concept has “dotty zebra”")).to_be_visible()
    expect(cards).to_have_count(0)
    search.fill("dot")
    expect(cards).to_have_count(1)
    open_tab(page, "Progress")
    page.wait_for_url("**#progress/*")
    page.reload()
    expect(page.get_by_role("tab", name="Progress")).to_have_attribute("aria-selected", "true")
    expect(panel(page).get_by_role("heading", name=NEWER)).to_be_visible()
    open_tab(page, "Score")
    page.go_back()
    expect(page.get_by_role("tab", name="Progress")).to_have_attribute("aria-selected", "true")
