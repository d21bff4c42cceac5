"""Keys, and the number of pictures that each may ask for."""

from pathlib import Path

import pytest

from loldu.errors import LoLDUError
from webui.serving.keys import Key, Quotas, RefusedError, read_keys

LONG = "sk-0123456789abcdef"


def test_a_quota_counts_the_pictures_of_the_last_minute() -> None:
    now = [0.0]
    quotas = Quotas({"a": Key(LONG, 3), "b": Key(f"{LONG}b")}, lambda: now[0])
    user = quotas.user(f"Bearer {LONG}")
    assert (user, quotas.user(f"Bearer {LONG}b")) == ("a", "b")
    quotas.take(user, 2)
    now[0] = 20.0
    with pytest.raises(RefusedError, match="3 pictures a minute, and this would be 4") as refused:
        quotas.take(user, 2)
    assert (refused.value.status, refused.value.again_s) == (429, 41)
    quotas.take("b", 1000)
    quotas.take(user, 1)
    quotas.give_back(user, 1)
    quotas.take(user, 1)
    now[0] = 60.5
    quotas.take(user, 2)
    with pytest.raises(RefusedError) as refused:
        quotas.take(user, 4)
    assert refused.value.again_s is None
    for wrong in (None, "", f"Bearer {LONG[:-1]}", "Bearer"):
        with pytest.raises(RefusedError, match="The key is unknown") as refused:
            quotas.user(wrong)
        assert refused.value.status == 401
    assert Quotas({}).user(None) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no user"),
        ("[a]\nkey = 'short'", r"\[a\] needs a key of at least 16 characters"),
        (f"[a]\nkey = '{LONG}'\n[b]\nkey = '{LONG}'", "two with one key"),
        (f"[a]\nkey = '{LONG}'\npictures = 3", "perhaps you meant pictures_a_minute"),
        (f"[a]\nkey = '{LONG}'\npictures_a_minute = 0", "it must be at least 1"),
        ("a = 1", "a is not a table"),
    ],
)
def test_a_mistake_in_the_file_of_keys(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(LoLDUError, match=sentence):
        read_keys(path)
