"""From pictures to a played concept in a real browser, on the embedded base.

With `STUDIO_PICTURES=docs/studio STUDIO_STEPS=80`, after `make demo`, the pictures of
`docs/studio.md` are taken on the way.
"""

import io
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from loldu import read_concept
from tests.webui.browser import PATIENCE_MS, ROOT, TAKEN, Server, assert_accessible_everywhere

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402

STEPS = int(os.environ.get("STUDIO_STEPS", "4"))
NAME = "Milo" if TAKEN else "<i>Milo</i>"
HOSTILE = "on grass" if TAKEN else "<img src=x onerror='window.hacked = 1'>"
_TOO_WIDE = """() => [...document.querySelectorAll(
    "[role=tabpanel] :is(button, input, textarea, table, h2, p, svg)")]
    .filter(one => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1
                   && !one.closest(".grid-wrap, .film"))
    .map(one => one.outerHTML.slice(0, 200))"""
CAT = sorted((ROOT / "datasets" / "concepts" / "striped_cat").glob("*.png"))


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def panel(page: Page) -> Locator:
    """Return the text of the open tab."""
    return page.locator("[role=tabpanel]:visible")


def drawn(page: Page, row: int) -> list[bytes]:
    """Return the pixels of a row of Play; row 0 is the base."""
    sources = [
        image.get_attribute("src") or ""
        for image in panel(page).locator(".pictures").nth(row).locator("button img").all()
    ]
    files = (io.BytesIO(page.request.get(source).body()) for source in sources)
    return [Image.open(file).convert("RGB").tobytes() for file in files]


def draw_again(page: Page, shown: Locator) -> None:
    """Press Draw, and wait until the picture changes."""
    before = shown.get_attribute("src") or ""
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(shown).not_to_have_attribute("src", before)


def take(page: Page, name: str) -> None:
    """Save a picture of the page, if the environment asks for it."""
    if TAKEN:
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        page.screenshot(path=ROOT / TAKEN / f"{name}.png", full_page=True)


def ask_for_training(page: Page, name: str, steps: int) -> None:
    open_tab(page, "Teach")
    page.get_by_label("Name").first.fill(name)
    page.get_by_label("Class").fill("toy")
    if not page.get_by_label("Steps").is_visible():
        page.get_by_text("More options").click()
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_label("Preserve the class").set_checked(bool(TAKEN))
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.get_by_role("tab", name="Progress")).to_have_attribute("aria-selected", "true")


def pictures_are_taken_and_wrong_files_are_named(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("text")
    files = page.locator("#files input[type=file]")
    files.set_input_files([*CAT[:4], tmp_path / "empty.png", tmp_path / "text.png"])
    expect(page.get_by_text("empty.png is empty")).to_be_visible()
    expect(page.get_by_text("text.png is not a picture")).to_be_visible()
    crops = page.locator(".pictures button.thumbnail-item")
    expect(crops).to_have_count(4)
    page.get_by_label("Class").fill("toy")
    page.get_by_label("Class").press("Tab")
    expect(page.get_by_text(re.compile("Takes about"))).to_be_visible()
    before = crops.nth(1).locator("img").get_attribute("src")
    crops.nth(1).click()
    whole = page.locator(".cropper .whole")
    whole.hover()
    page.mouse.wheel(0, -300)
    expect(page.get_by_label("Zoom")).not_to_have_value("1")
    expect(crops.nth(1).locator("img")).not_to_have_attribute("src", before or "")
    for close in page.get_by_label("Close").all():
        close.click()
    take(page, "concepts")


def a_training_goes_on_while_the_page_is_reloaded(page: Page) -> None:
    ask_for_training(page, NAME, STEPS)
    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    assert_accessible_everywhere(page, "a training runs")
    page.reload()  # it opens where something is going on
    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    expect(page.get_by_text(f"{STEPS} of {STEPS}").first).to_be_visible()
    expect(panel(page).get_by_text("Finished").first).to_be_visible()
    take(page, "progress")
    panel(page).get_by_role("button", name="Curves and scores").click()
    expect(page.get_by_text("CLIP-T").first).to_be_visible()
    assert_accessible_everywhere(page, "a training is done")


def a_step_is_kept(page: Page) -> None:
    frame = panel(page).locator(".film [data-step]").nth(1)
    frame.click()
    page.get_by_role("button", name=f"Keep step {frame.get_attribute('data-step')}").click()
    expect(page.get_by_text(re.compile("is in the Library"))).to_be_visible()


def base_and_concept_are_drawn_and_the_strength_changes_the_concept_alone(page: Page) -> None:
    page.get_by_role("button", name="Play with it").click()
    expect(page.get_by_role("tab", name="Play")).to_have_attribute("aria-selected", "true")
    prompt = panel(page).get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value(re.compile("a photo of a (sks|zwx) toy"))
    panel(page).get_by_text("Settings", exact=True).click()
    panel(page).get_by_label("number input for Pictures", exact=True).fill("2")
    panel(page).get_by_label("Steps", exact=True).fill("20" if TAKEN else "8")
    page.get_by_role("button", name="Draw", exact=True).click()
    rows = panel(page).locator(".pictures")
    expect(rows.nth(1).locator("button img")).to_have_count(2)
    assert_accessible_everywhere(page, "pictures are drawn")
    base, concept = drawn(page, 0), drawn(page, 1)
    assert len(base) == len(concept) == 2
    assert not set(base) & set(concept)

    canvas = panel(page).locator(".wipe img")
    expect(canvas).to_have_count(2)
    divider = panel(page).get_by_label(re.compile("Divider between"))
    divider.press("ArrowLeft")
    clip = "one => getComputedStyle(one).clipPath"
    assert "49%" in canvas.nth(1).evaluate(clip)

    shown = rows.nth(1).locator("button img").first
    before = shown.get_attribute("src") or ""
    strength = panel(page).locator(".strength input[type=range]").first
    strength.focus()
    strength.press("Home")  # the keyboard draws again, as the mouse does
    expect(shown).not_to_have_attribute("src", before)
    assert drawn(page, 0) == base
    assert drawn(page, 1) == base  # strength 0 is the base, bit by bit

    before = shown.get_attribute("src") or ""
    number = panel(page).get_by_label(re.compile("number input for Strength")).first
    number.fill("0.8")
    number.press("Tab")
    expect(shown).not_to_have_attribute("src", before)
    assert not set(drawn(page, 1)) & {*base, *concept}


def a_cell_of_the_grid_sets_strength_and_step(page: Page) -> None:
    fold = panel(page).get_by_role("button", name="Grid of strengths and steps")
    fold.click()
    if not TAKEN:
        panel(page).get_by_label("Steps", exact=True).fill("2")
    panel(page).get_by_role("button", name="Draw the grid").click()
    expect(panel(page).get_by_role("link", name=re.compile("Save the grid"))).to_be_visible()
    cells = panel(page).locator(".xy [data-strength]")
    expect(cells).to_have_count(4 * min(STEPS, 5))
    assert_accessible_everywhere(page, "a grid is drawn")
    take(page, "grid")
    shown = panel(page).locator(".pictures").nth(1).locator("button img").first
    before = shown.get_attribute("src") or ""
    cells.nth(1).click()
    expect(panel(page).get_by_label(re.compile("number input for Strength")).first).to_have_value(
        "0.7"
    )
    step = cells.nth(1).get_attribute("data-step") or ""
    expect(panel(page).get_by_label("Step of its training")).to_have_value(step)
    expect(cells.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(shown).not_to_have_attribute("src", before)  # drawn at that step
    fold.click()


def two_concepts_are_mixed_and_drawn_in_one_batch(page: Page) -> None:
    second = "demo" if TAKEN else f"{NAME}, step"
    panel(page).locator(".chips label").filter(has_text=second).first.click()
    sliders = panel(page).get_by_text(re.compile("^Strength of"))
    expect(sliders).to_have_count(2)
    alone = drawn(page, 1)
    rows = panel(page).locator(".pictures")
    draw_again(page, rows.nth(1).locator("button img").first)
    mixed = drawn(page, 1)
    assert not set(mixed) & set(alone)
    panel(page).get_by_label("Prompt", exact=True).fill("a {token} {class} " + HOSTILE)
    page.get_by_label("One in each picture").check()
    draw_again(page, rows.nth(1).locator("button img").first)
    expect(rows.nth(1).locator("button img")).to_have_count(4)
    each = drawn(page, 1)
    assert not set(each) & set(mixed)
    assert each[0] != each[1]
    take(page, "play")
    newest = rows.last.locator("button.thumbnail-item").first
    expect(newest).to_have_attribute("aria-label", re.compile("."))  # it shows no text
    rows.last.locator("button img").first.click()
    expect(page.get_by_text(HOSTILE).first).to_be_visible()
    assert page.evaluate("window.hacked") is None


def a_concept_leaves_and_comes_back(page: Page, tmp_path: Path) -> None:
    open_tab(page, "Library")
    cards = page.locator(".cards button img")
    expect(cards.nth(1)).to_be_visible()
    count = cards.count()
    cards.nth(1).click()
    take(page, "library")
    page.get_by_role("button", name=re.compile("Export: concept", re.IGNORECASE)).click()
    link = panel(page).locator("a[download]").first
    with page.expect_download() as download:
        link.click()
    exported = tmp_path / download.value.suggested_filename
    download.value.save_as(exported)
    assert exported.suffix == ".safetensors"
    layers = read_concept(exported).layers
    assert layers

    chooser = page.locator("[role=tabpanel]:visible input[type=file]").first
    chooser.set_input_files(exported)
    expect(cards).to_have_count(count + 1)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(exported.read_bytes()[:-8])
    chooser.set_input_files(broken)
    expect(page.get_by_text(re.compile("broken"))).to_be_visible()
    expect(cards).to_have_count(count + 1)


def a_concept_is_scored(page: Page) -> None:
    page.locator(".cards button img").nth(1).click()
    page.get_by_role("button", name="Score it").click()
    expect(page.get_by_role("tab", name="Score")).to_have_attribute("aria-selected", "true")
    panel(page).get_by_label("number input for Seeds").fill("1")
    panel(page).get_by_label("Steps", exact=True).fill("20" if TAKEN else "2")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(panel(page).get_by_text("Looks like it")).to_be_visible()
    take(page, "score")
    panel(page).get_by_role("button", name="Numbers").click()
    expect(panel(page).get_by_role("rowheader", name="DINO", exact=True)).to_be_visible()
    assert_accessible_everywhere(page, "a concept is scored")


def at_a_phones_width_nothing_is_cut_off(browser: Browser, server: Server, *, dark: bool) -> None:
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.set_default_timeout(PATIENCE_MS)
    phone.goto(f"{server.url}{'?__theme=dark' if dark else ''}")
    expect(phone.get_by_role("tab", name="Teach")).to_be_visible()
    for tab in ("Teach", "Progress", "Play", "Library", "Score"):
        phone.get_by_role("tab", name=tab).click()  # all are in sight
        expect(panel(phone)).to_be_visible()
        phone.wait_for_timeout(500)
        wide = phone.evaluate(_TOO_WIDE)
        assert not wide, f"cut off in {tab}: {wide}"
        if dark and tab == "Progress":
            take(phone, "phone")
    phone.close()


def test_from_pictures_to_a_played_concept(
    page: Page, browser: Browser, server: Server, tmp_path: Path
) -> None:
    pictures_are_taken_and_wrong_files_are_named(page, tmp_path)
    a_training_goes_on_while_the_page_is_reloaded(page)
    a_step_is_kept(page)
    base_and_concept_are_drawn_and_the_strength_changes_the_concept_alone(page)
    a_cell_of_the_grid_sets_strength_and_step(page)
    two_concepts_are_mixed_and_drawn_in_one_batch(page)
    a_concept_leaves_and_comes_back(page, tmp_path)
    a_concept_is_scored(page)
    for dark in (False, True):
        at_a_phones_width_nothing_is_cut_off(browser, server, dark=dark)
