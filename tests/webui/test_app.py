"""The page over HTTP, as a browser and as gradio's own client speak it."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from webui.app import Handlers, create_demo, describe
from webui.drawing import Request, Studio


@pytest.fixture(scope="module")
def url(base_folder: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by the command in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "webui", "--port", str(port), "--runs", str(runs)]
    command += ["--base", str(base_folder)]
    folder = tmp_path_factory.mktemp("gradio")
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRADIO_TEMP_DIR": str(folder), "OMP_NUM_THREADS": "1"},
    ) as server:
        assert server.stderr
        said = ""
        while "Open http" not in said:
            line = server.stderr.readline()
            assert line, f"the page is not served: {said}"
            said += line
        yield f"http://127.0.0.1:{port}/"
        server.terminate()


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("drawn")
    return Client(url, verbose=False, analytics_enabled=False, download_files=folder)


def ask(client: Client, base: Path, concept: str | None = "rabbit", seed: int = 3) -> list[list]:
    return client.predict(
        str(base), concept, 1.2, "a photo of a sks toy", seed, 2, 2, 3.0, api_name="/draw"
    )


def test_the_page_loads_nothing_from_elsewhere(url: str) -> None:
    page = httpx.get(url).text
    assert "<title>LoLDU</title>" in page or '"title":"LoLDU"' in page.replace(" ", "")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?://", page)
    theme = httpx.get(f"{url}theme.css").text
    assert not re.search(r"@import|url\(.?(https?:)?//", theme)


def test_draw_answers_with_both_rows(client: Client, base_folder: Path, runs: Path) -> None:
    rows = ask(client, base_folder)
    studio = Studio(runs)
    request = Request("a photo of a sks toy", 3, 2, 2, 3.0)
    expected = (
        studio.draw_base(str(base_folder), request, lambda *_: None),
        studio.draw_concept(str(base_folder), "rabbit", 1.2, request, lambda *_: None),
    )
    for row, images in zip(rows, expected, strict=True):
        for shown, image in zip(row, images, strict=True):
            assert np.array_equal(Image.open(shown["image"]).convert("RGB"), image)


def test_mistakes_are_told_in_a_sentence_and_the_page_goes_on(
    client: Client, base_folder: Path, tmp_path: Path
) -> None:
    for base, concept, told in (
        (base_folder, None, "No concept is chosen"),
        (base_folder, "broken", "is not a readable .safetensors file"),
        (tmp_path / "<i>nothing", "rabbit", "&lt;i&gt;nothing does not exist"),
    ):
        with pytest.raises(AppError, match=told):
            ask(client, base, concept)
    assert len(ask(client, base_folder)[1]) == 2


def test_choosing_fills_in_what_the_run_knows(studio: Studio) -> None:
    handlers = Handlers(studio)
    own = "a photo of a sks <b>toy</b>"
    *_, (facts, prompt, suggested, steps, guidance) = handlers.choose("rabbit", "", "")
    assert facts == describe(studio.facts("rabbit"))
    assert (prompt, suggested, steps, guidance) == (own, own, 7, 2.5)
    *_, (_, kept, *_rest) = handlers.choose("rabbit", "my own words", "")
    assert kept != own


def test_what_a_file_says_is_shown_as_text(studio: Studio) -> None:
    shown = describe(studio.facts("rabbit"))
    assert "<b>" not in shown
    assert "sks &lt;b&gt;toy&lt;/b&gt;" in shown
    assert "<dd>32</dd>" in shown
    assert "<dd>128</dd>" in shown


def test_the_layout_builds_without_any_run(tmp_path: Path) -> None:
    async def build() -> gr.Blocks:
        return create_demo(Studio(tmp_path / "nothing"), "pocket/base")

    demo = asyncio.run(build())  # outside of a loop gradio makes several and closes none
    labels = {block.label for block in demo.blocks.values() if getattr(block, "label", None)}
    assert {"Concept", "Strength", "Prompt", "Base model", "Base", "With the concept"} <= labels
