"""The keys of a server, and how many pictures each may ask for."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loldu.errors import LoLDUError
from loldu.files import read_toml
from loldu.options import build, limit_problems, option, options, typed_values

_WINDOW_S = 60.0


@dataclass(frozen=True)
class Key:
    """A key of an API and its limit."""

    key: str = ""
    pictures_a_minute: int | None = option(None, at_least=1)


class RefusedError(LoLDUError):
    """A request that is not answered now.

    Attributes:
        status: HTTP status.
        again_s: Seconds until it may be answered, if that is known.
    """

    def __init__(self, sentence: str, status: int, again_s: int | None = None) -> None:
        """Refuse with a sentence and a status."""
        super().__init__(sentence)
        self.status = status
        self.again_s = again_s


def read_keys(path: Path) -> dict[str, Key]:
    """Read a TOML file with a table for each user, which has a key and perhaps a limit.

    Raises:
        LoLDUError: If it cannot be read, or a key is missing, short or there twice.
    """
    found: dict[str, Key] = {}
    for name, table in read_toml(path, "--keys").items():
        where = f"{path}: [{name}]"
        if not isinstance(table, dict):
            raise LoLDUError(f"{path}: {name} is not a table; begin each user with [their name].")
        found[name] = build(Key, typed_values(table, options(Key), where))
        for problem in limit_problems(found[name]):
            raise LoLDUError(f"{where}: {problem.removeprefix('--')}")
        if len(found[name].key) < 16:
            raise LoLDUError(f"{where} needs a key of at least 16 characters.")
    if not found or len({each.key for each in found.values()}) < len(found):
        raise LoLDUError(f"--keys {path} has no user, or two with one key: give each a key.")
    return found


class Quotas:
    """Counts the pictures that every user has asked for in the last minute."""

    def __init__(
        self, keys: Mapping[str, Key], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with nothing counted; without keys, everybody may ask."""
        self._users = {_digest(key.key): name for name, key in keys.items()}
        self._keys = keys
        self._clock = clock
        self._asked: dict[str, deque[float]] = {name: deque() for name in keys}

    def user(self, authorization: str | None) -> str | None:
        """Return the user of an `Authorization: Bearer KEY` header, or None without keys.

        Raises:
            RefusedError: If there are keys, and this is none of them.
        """
        if not self._keys:
            return None
        key = (authorization or "").removeprefix("Bearer ").strip()
        name = self._users.get(_digest(key))
        if name is None:
            raise RefusedError("The key is unknown: send Authorization: Bearer KEY.", 401)
        return name

    def take(self, user: str | None, count: int) -> None:
        """Count pictures.

        Raises:
            RefusedError: If the user would have more than their limit within a minute.
        """
        most = None if user is None else self._keys[user].pictures_a_minute
        if user is None or most is None:
            return
        asked, now = self._asked[user], self._clock()
        while asked and asked[0] <= now - _WINDOW_S:
            asked.popleft()
        over = len(asked) + count - most
        if over > 0:
            again = int(asked[over - 1] + _WINDOW_S - now) + 1 if over <= len(asked) else None
            raise RefusedError(
                f"This key may have {most} pictures a minute, and this would be "
                f"{len(asked) + count}: ask for fewer, or later.",
                429,
                again,
            )
        asked.extend([now] * count)

    def give_back(self, user: str | None, count: int) -> None:
        """Take back the count of pictures that were not drawn."""
        asked = self._asked.get(user or "", deque())
        for _ in range(min(count, len(asked))):
            asked.pop()


def _digest(key: str) -> bytes:
    """Return a digest, whose comparison takes equally long for all wrong keys."""
    return hashlib.sha256(key.encode()).digest()
