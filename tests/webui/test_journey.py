"""A person's whole way through the studio, in a real browser, on the embedded base.

With `STUDIO_PICTURES=docs/studio` the pictures of `docs/webui.md` are taken on the way.
"""

import os
from collections.abc import Iterator

import pytest

from tests.webui.browser import ROOT, installed_browser

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
from playwright.sync_api import Browser  # noqa: E402

PATIENCE_MS = 240_000
PICTURES = os.environ.get("STUDIO_PICTURES")
CAT = sorted((ROOT / "datasets" / "concepts" / "striped_cat").glob("*.png"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = installed_browser()
    if path is None:
        pytest.skip("needs a browser: install chromium (apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
