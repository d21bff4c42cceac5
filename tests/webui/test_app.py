"""The page over HTTP, through plain requests and gradio's client."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from tests.webui.browser import served
from tests.webui.concepts import MakeUse
from webui.app import create_demo
from webui.backend import open_backend
from webui.drawing.asked import STRENGTHS, TOGETHER
from webui.drawing.settings import read_png
from webui.drawing.studio import Studio, Task, Watch


@pytest.fixture(scope="module")
def url(base_folder: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the page, served by the command in another process."""
    studio = tmp_path_factory.mktemp("studio")
    with served(studio, "--base", str(base_folder), "--runs", str(runs)) as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("drawn")
    client = Client(url, verbose=False, analytics_enabled=False, download_files=folder)
    client.predict(api_name="/concepts")  # which a browser asks for when the page is opened
    return client


def ask(client: Client, concept: str | None = "rabbit", seed: int = 3) -> list[list]:
    chosen = [] if concept is None else [concept]
    settings = {"prompt": "a photo of a sks toy", "negative_prompt": "dark", "seed": seed}
    settings |= {"count": 2, "steps": 2, "guidance": 3.0, "step": None, "way": TOGETHER}
    settings |= dict(zip(STRENGTHS, (1.2, 1.0, 1.0, 1.0), strict=True))
    return client.predict(concepts=chosen, **settings, api_name="/draw")


def test_the_page_loads_nothing_from_elsewhere(url: str) -> None:
    page = httpx.get(url).text
    assert "<title>LoLDU</title>" in page or '"title":"LoLDU"' in page.replace(" ", "")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?://", page)
    theme = httpx.get(f"{url}theme.css").text
    assert not re.search(r"@import|url\(.?(https?:)?//", theme)


def test_draw_answers_with_both_rows(
    client: Client, studio: Studio, use: MakeUse, watch: Watch
) -> None:
    rows = ask(client)
    task = Task(("a photo of a sks toy",) * 2, (3, 4), "dark", 2, 3.0)
    expected = (
        studio.draw_base(task, [], watch),
        studio.draw_concepts(task, [[use("rabbit", 1.2)]] * 2, watch),
    )
    for row, pictures in zip(rows, expected, strict=True):
        for shown, picture in zip(row, pictures, strict=True):
            path = Path(shown["image"])
            assert np.array_equal(Image.open(path).convert("RGB"), picture.image)
            assert read_png(path) == picture.settings


def test_mistakes_give_one_sentence_and_the_page_still_works(client: Client) -> None:
    with pytest.raises(AppError, match=r"is not a readable \.safetensors file"):
        ask(client, "broken")
    base, adapted = ask(client, None)
    assert (len(base), adapted) == (2, [])


@pytest.fixture
def demo(tmp_path: Path) -> gr.Blocks:
    """Return the page of a studio without runs and examples."""

    async def build() -> gr.Blocks:
        nothing = tmp_path / "nothing"
        backend = open_backend(
            "pocket/base", studio=tmp_path / "studio", runs=nothing, examples=nothing
        )
        return create_demo(backend)

    return asyncio.run(build())  # outside of a loop gradio makes several and closes none


def test_the_layout_builds_without_any_run(demo: gr.Blocks) -> None:
    labels = {block.label for block in demo.blocks.values() if getattr(block, "label", None)}
    assert {"Concepts", "Prompt", "Negative prompt", "Base", "With the concept"} <= labels


def test_no_two_handlers_of_an_event_wait_for_its_last_occurrence(demo: gr.Blocks) -> None:
    """gradio repeats the whole event when one has waited, so two would call each other for good."""
    waiting = Counter(
        (target, type(demo.blocks[target]).__name__, event)
        for fn in demo.fns.values()
        if fn.trigger_mode == "always_last"
        for target, event in fn.targets
        if target in demo.blocks
    )
    assert not [event for event, count in waiting.items() if count > 1]
