"""The studio, served by its command, and a browser."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE_MS = int(os.environ.get("STUDIO_PATIENCE_MS", "240000"))
TAKEN = os.environ.get("STUDIO_PICTURES")
"""Folder for pictures of the page, or None."""
OLDER, NEWER = "An <b>older</b> one", "A newer one"
"""A failed and a stopped training in the studio of the browser tests."""
ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Server:
    """A served studio.

    Attributes:
        url: of the page.
        process: of the command.
    """

    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    """Return a free port below the range from which the system takes ports for connections."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def served(studio: Path, *flags: str, port: int | None = None) -> Iterator[Server]:
    """Serve the page from a new process, on a free port by default."""
    port = port or free_port()
    command = [sys.executable, "-m", "webui", "--port", str(port), "--studio", str(studio)]
    with subprocess.Popen(
        [*command, *flags],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stderr
        said = ""
        while "Open http" not in said:
            line = process.stderr.readline()
            assert line, f"the page is not served: {said}"
            said += line
        yield Server(f"http://127.0.0.1:{port}/", process)
        process.terminate()


def installed_browser() -> str | None:
    """Return a browser of the system that Playwright can control."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


_FAINT = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const part = rgb[i] / 255;
    return sum + weight * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  }, 0);
  const paper = (one) => {
    for (let each = one; each; each = each.parentElement) {
      const [r, g, b, opaque = 1] = channels(getComputedStyle(each).backgroundColor);
      if (opaque > 0.5) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].filter((node) => node.nodeType === 3);
    const text = own.map((node) => node.data).join('').trim();
    const off = one.closest(
      '[disabled], [aria-hidden=true], .sr-only, .toast-wrap, svg, style, script');
    const seen = one.checkVisibility({visibilityProperty: true, opacityProperty: true});
    if (!text || off || !seen) continue;
    const style = getComputedStyle(one), size = parseFloat(style.fontSize);
    const [a, b] = [light(channels(style.color)), light(paper(one))].sort((x, y) => y - x);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} ${text.slice(0, 40)}`);
  }
  return found;
}"""
"""Texts whose contrast is below that of WCAG AA."""
_AA = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}"


def assert_accessible(page: "Page", state: str) -> None:
    """Measure the contrast of every text; with `AXE_CORE`, check all rules of WCAG AA."""
    faint = page.evaluate(_FAINT)
    for _ in range(40):
        if not faint:
            break
        page.wait_for_timeout(250)  # colours change little by little
        faint = page.evaluate(_FAINT)
    assert not faint, f"{state}: {faint}"
    if axe := os.environ.get("AXE_CORE"):  # axe.min.js of the npm package axe-core
        page.evaluate(Path(axe).read_text())
        found = page.evaluate(f"axe.run(document, {_AA})")["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], state


def assert_accessible_everywhere(page: "Page", state: str) -> None:
    """Check the page as it is now in light and dark, with `AXE_CORE` also on a phone."""
    size = page.viewport_size or {"width": 1280, "height": 900}
    for width in (size["width"], 390) if os.environ.get("AXE_CORE") else (size["width"],):
        page.set_viewport_size({"width": width, "height": size["height"]})
        for theme in ("light", "dark"):
            page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
            page.wait_for_timeout(400)
            assert_accessible(page, f"{state}, {theme}, {width} pixels")
    page.evaluate("document.body.classList.remove('dark')")
    page.set_viewport_size(size)
