"""Who reaches the page: names it answers to, a delay after wrong passwords, a cookie of drafts."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loldu.errors import LoLDUError

LONGEST_DELAY_S, _MOST_WAITING = 60, 5
VISITOR = "loldu_visitor"
_COOKIE = f"Max-Age={365 * 24 * 3600}; Path=/; HttpOnly; SameSite=Lax"
_FORGOTTEN_AFTER_S, _MOST_ADDRESSES = 15 * 60, 10_000


class AllowedHosts:
    """The names and addresses that a server answers to.

    Another site can let its own name point to this machine (DNS rebinding). Its script could then
    use the page, which may have no login. An address of numbers cannot be taken over like that.
    """

    def __init__(self, host: str, names: Iterable[str] = ()) -> None:
        """Allow this machine's own names, the host to listen on, and more names.

        Raises:
            LoLDUError: If a name has a scheme, a port or a path.
        """
        self._names = {"localhost", _plain(host)}
        self._any_address = _plain(host) in ("0.0.0.0", "::", "")
        for name in names:
            if not name or set("/:*@ ") & set(name):
                raise LoLDUError(
                    f"--allowed_hosts {name!r} is not a name: leave out http://, the port and the "
                    "path, as in studio.example.org."
                )
            self.add(name)

    def add(self, name: str) -> None:
        """Allow one more name."""
        self._names.add(_plain(name))

    def allow(self, header: str) -> bool:
        """Return whether a request with this `Host` header is answered."""
        name = header.strip()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        name = _plain(name)
        if name in self._names:
            return True
        try:
            return ip_address(name).is_loopback or self._any_address
        except ValueError:
            return False


class HostCheck:
    """Refuses requests for other hosts, of web sockets too."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        """Protect `app`."""
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with a sentence."""
        if scope["type"] in ("http", "websocket"):
            asked = Headers(scope=scope).getlist("host")
            if len(asked) != 1 or not self._hosts.allow(asked[0]):
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                sentence = (
                    "The studio does not answer to this name. Open the address that it printed, or "
                    "start it with --allowed_hosts and the name.\n"
                )
                await PlainTextResponse(sentence, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


@dataclass
class _Attempts:
    """Logins from one address: those that wait, wrong ones, and the time of the last."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    wrong: int = 0
    last: float = 0.0


class LoginDelay:
    """Makes whoever types wrong passwords wait: 1 s, 2 s, 4 s and so on, up to a minute.

    Attempts from an address are checked one after the other, so that many at once gain nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Protect the login of `app`."""
        self._app, self._sleep, self._clock = app, sleep, clock
        self._attempts: dict[str, _Attempts] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; a login waits first if earlier ones were wrong."""
        path = str(scope.get("path", "")).rstrip("/")
        if (scope["type"], scope.get("method"), path) != ("http", "POST", "/login"):
            await self._app(scope, receive, send)
            return
        attempts = self._of(scope)
        if attempts.waiting >= _MOST_WAITING:
            sentence = "Too many logins wait already: try again in a minute.\n"
            await PlainTextResponse(sentence, 429)(scope, receive, send)
            return
        attempts.waiting += 1
        try:
            async with attempts.lock:
                await self._try(attempts, scope, receive, send)
        finally:
            attempts.waiting -= 1

    async def _try(self, attempts: _Attempts, scope: Scope, receive: Receive, send: Send) -> None:
        if attempts.wrong:
            await self._sleep(min(2 ** (attempts.wrong - 1), LONGEST_DELAY_S))

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                attempts.wrong = 0 if message["status"] == 200 else min(attempts.wrong + 1, 99)
                attempts.last = self._clock()
            await send(message)

        await self._app(scope, receive, watched)

    def _of(self, scope: Scope) -> _Attempts:
        """Return the attempts of the address that asks; an IPv6 user has a whole network."""
        address, now = (scope.get("client") or ("", 0))[0], self._clock()
        if ":" in address:
            address = str(ip_network(f"{address.partition('%')[0]}/64", strict=False))
        if len(self._attempts) >= _MOST_ADDRESSES:
            self._attempts = {key: each for key, each in self._attempts.items() if each.waiting}
        attempts = self._attempts.setdefault(address, _Attempts())
        if now - attempts.last > _FORGOTTEN_AFTER_S:
            attempts.wrong = 0
        return attempts


class VisitorCookie:
    """Gives every browser that opens the page a cookie, which tells drafts of visitors apart."""

    def __init__(self, app: ASGIApp) -> None:
        """Give cookies to the browsers of `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; a browser without the cookie gets it with the page."""
        opens = scope["type"] == "http" and scope.get("path", "").rstrip("/") == ""
        if not opens or VISITOR in cookie_parser(Headers(scope=scope).get("cookie", "")):
            await self._app(scope, receive, send)
            return
        cookie = f"{VISITOR}={secrets.token_hex(16)}; {_COOKIE}"

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        await self._app(scope, receive, with_cookie)


def protection(hosts: AllowedHosts) -> list[Middleware]:
    """Return the middleware of the server, the outermost first."""
    return [Middleware(HostCheck, hosts=hosts), Middleware(LoginDelay), Middleware(VisitorCookie)]


def _plain(name: str) -> str:
    return name.strip("[]").lower().rstrip(".")
