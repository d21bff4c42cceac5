"""The page in a real browser: what it shows, and that it acts on nothing else.

The tests share a studio with two stopped trainings; none of them trains.
"""

import re

import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
from playwright.sync_api import Locator, Page, expect

from tests.webui.browser import NEWER, OLDER


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
