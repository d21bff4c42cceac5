"""Requests for other hosts, and wrong passwords."""

import asyncio

import gradio as gr
import pytest
from gradio.routes import App
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from loldu.errors import LoLDUError
from webui.access import (
    LONGEST_DELAY_S,
    VISITOR,
    AllowedHosts,
    HostCheck,
    LoginDelay,
    VisitorCookie,
)
from webui.backend import visitor


@pytest.mark.parametrize(
    ("host", "header", "answered"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "localhost:7860", True),
        ("127.0.0.1", "LocalHost.", True),
        ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "127.9.9.9", True),
        ("127.0.0.1", "studio.example.org", True),
        ("127.0.0.1", "evil.com", False),
        ("127.0.0.1", "localhost.evil.com:7860", False),
        ("127.0.0.1", "evil.com#localhost", False),
        ("127.0.0.1", "192.168.1.5:7860", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "127.0.0.1.nip.io", False),
        ("0.0.0.0", "192.168.1.5:7860", True),
        ("0.0.0.0", "[fe80::1]:7860", True),
        ("::", "10.0.0.1", True),
        ("0.0.0.0", "evil.com:7860", False),
        ("192.168.1.5", "192.168.1.5:7860", True),
        ("192.168.1.5", "192.168.1.6", False),
        ("nas.local", "NAS.local:7860", True),
        ("nas.local", "other.local", False),
    ],
)
def test_hosts(host: str, header: str, answered: bool) -> None:
    assert AllowedHosts(host, ["Studio.example.org"]).allow(header) == answered


@pytest.mark.parametrize("name", ["http://a.org", "a.org:80", "", "*", "a.org/x"])
def test_an_allowed_host_is_a_name(name: str) -> None:
    with pytest.raises(LoLDUError, match=r"--allowed_hosts .* is not a name: leave out http://"):
        AllowedHosts("127.0.0.1", [name])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})


@pytest.mark.parametrize(
    ("name", "answer"),
    [("localhost", "accept"), ("evil.com", "close"), ("abc.gradio.live", "accept")],
)
def test_a_web_socket_for_another_host_is_refused(name: str, answer: str) -> None:
    sent: list[str] = []

    async def send(message: dict) -> None:
        sent.append(message["type"])

    hosts = AllowedHosts("127.0.0.1")
    hosts.add("abc.gradio.live")  # the share link, which is known after the start
    scope = {"type": "websocket", "path": "/queue", "headers": [(b"host", name.encode())]}
    asyncio.run(HostCheck(echo, hosts)(scope, None, send))
    assert sent[0] == f"websocket.{answer}"


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def client(slept: list[float]) -> TestClient:
    """Return gradio's own app with a user, behind both checks, on a clock that only sleep moves."""

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def build() -> App:
        with gr.Blocks() as demo:
            gr.Textbox()
        demo.auth, demo.max_file_size = [("ann", "right")], None
        delay = Middleware(LoginDelay, sleep=sleep, clock=lambda: sum(slept))
        check = Middleware(HostCheck, hosts=AllowedHosts("127.0.0.1"))
        return App.create_app(demo, app_kwargs={"middleware": [check, delay]})

    return TestClient(asyncio.run(build()), "http://localhost", raise_server_exceptions=False)


def log_in(client: TestClient, password: str) -> int:
    return client.post("/login", data={"username": "ann", "password": password}).status_code


def test_the_delay_after_wrong_passwords_grows(client: TestClient, slept: list[float]) -> None:
    assert [log_in(client, "wrong") for _ in range(9)] == [400] * 9
    assert slept == [1, 2, 4, 8, 16, 32, LONGEST_DELAY_S, LONGEST_DELAY_S]
    assert log_in(client, "right") == 200
    del slept[:]
    assert log_in(client, "right") == log_in(client, "right") == 200
    assert log_in(client, "wrong") == 400
    assert slept == []
    slept.append(16 * 60)  # it is forgotten
    assert log_in(client, "wrong") == 400
    assert slept == [16 * 60]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/theme.css"),
        ("POST", "/login"),
        ("POST", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/queue/data"),
        ("POST", "/gradio_api/upload"),
        ("GET", "/nothing"),
    ],
)
def test_nothing_is_answered_to_another_host(client: TestClient, method: str, path: str) -> None:
    refused = client.request(method, path, headers={"host": "evil.com"})
    assert refused.status_code == 403
    assert "The studio does not answer to this name." in refused.text
    assert "does not answer" not in client.request(method, path).text


def test_many_logins_at_once_wait_for_each_other(slept: list[float]) -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    statuses: list[int] = []

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def log_in_at_once() -> None:
        app = LoginDelay(refuse, sleep=sleep, clock=lambda: 0.0)
        scope = {"type": "http", "method": "POST", "path": "/login/", "client": ("2001:db8::1", 1)}
        others = [{**scope, "client": (f"2001:db8::{number}", 1)} for number in range(2, 21)]
        await asyncio.gather(*(app(each, None, send) for each in (scope, *others)))

    asyncio.run(log_in_at_once())
    assert slept == [1, 2, 4, 8]
    assert sorted(statuses) == [400] * 5 + [429] * 15


def test_every_browser_gets_one_cookie_and_a_draft_of_its_own() -> None:
    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("page")(scope, receive, send)

    first, second = (TestClient(VisitorCookie(page)) for _ in range(2))
    assert VISITOR not in first.get("/config").cookies  # only with the page
    assert "HttpOnly" in first.get("/").headers["set-cookie"]
    second.get("/")
    assert len(first.cookies[VISITOR]) == 32
    assert first.cookies[VISITOR] != second.cookies[VISITOR]
    assert "set-cookie" not in first.get("/").headers  # it has one
    browsers = [{"cookies": dict(client.cookies)} for client in (first, second)]
    of_ann, of_bob = (visitor(gr.Request(**browser)) for browser in browsers)
    assert of_ann != of_bob
    assert visitor(gr.Request(username="ann", **browsers[0])) == "ann"
