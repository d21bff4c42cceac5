"""Requests that the served page must refuse, over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.webui.browser import Server, served

USERS = ("--auth", "ann:1:a", "bob:b")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def server(base_folder: Path, studio: Path) -> Iterator[Server]:
    with served(studio, "--base", str(base_folder), *USERS) as server:
        yield server


@pytest.fixture
def ann(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:  # wrong passwords make it wait
        answer = client.post("login", data={"username": "ann", "password": "1:a"})
        assert answer.status_code == 200
        yield client


def test_nothing_is_served_without_a_login(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:  # wrong passwords make it wait
        assert client.get("config").status_code == 401
        assert client.get("gradio_api/info").status_code == 401
        files = {"files": ("x.png", b"x")}
        assert client.post("gradio_api/upload", files=files).status_code == 401
        for name, password in (("ann", "b"), ("ann", ""), ("", ""), ("eve", "1:a")):
            answer = client.post("login", data={"username": name, "password": password})
            assert answer.status_code in (400, 422)
        assert client.get("config").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "{studio}/studio.sqlite",
        "{studio}/cache/../studio.sqlite",
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "pyproject.toml",
        "{studio}/cache/..%2fstudio.sqlite",
    ],
)
def test_only_files_of_the_page_are_served(ann: httpx.Client, studio: Path, path: str) -> None:
    path = path.format(studio=studio)
    assert ann.get(f"gradio_api/file={path}").status_code in (403, 404)


def test_an_upload_is_stored_under_a_generated_name(ann: httpx.Client, studio: Path) -> None:
    files = {"files": ("../../x.png", b"x")}
    answer = ann.post("gradio_api/upload", files=files)
    (path,) = answer.json()
    assert Path(path).resolve().is_relative_to(studio / "cache")
    assert not list(studio.parent.glob("x.png"))


def test_large_uploads_are_refused(ann: httpx.Client, studio: Path) -> None:
    files = {"files": ("big.png", bytes(33 * 2**20))}
    assert ann.post("gradio_api/upload", files=files).status_code == 413
    assert not [path for path in (studio / "cache").rglob("*") if path.name == "big.png"]


def test_other_origins_cannot_read_answers(ann: httpx.Client) -> None:
    answers = [
        ann.get("config", headers={"Origin": origin}).headers
        for origin in ("http://localhost:3000", "https://evil.example")
    ]
    assert [("access-control-allow-origin" in headers) for headers in answers] == [True, False]
