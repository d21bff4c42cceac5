import shutil
import socket
from pathlib import Path

import pytest

from webui.__main__ import StudioOptions, check, run


def test_help_explains_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["--help"])
    message = capsys.readouterr().out
    for flag in ("--base", "--host", "--port", "--auth", "--share", "--studio", "--runs"):
        assert flag in message


def test_a_taken_port_gives_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["--port", str(port)]) == 2
    assert f"Cannot listen on --host 127.0.0.1 --port {port} " in capsys.readouterr().err


def test_a_base_that_no_job_could_use_is_refused_at_the_start(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    runs: Path,
    base_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    half = shutil.copytree(base_folder, tmp_path / "half", ignore=shutil.ignore_patterns("unet"))
    other = shutil.copytree(half, tmp_path / "other")
    (other / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    concept = runs / "house" / "concept.safetensors"
    for base, message in (
        ("nope/nothere", "The base nope/nothere is neither a local folder nor on the Hub: "),
        (concept, f"{concept} is a concept, not a base; give "),
        (half, f"The base {half} lacks its folder unet; download it again."),
        (
            other,
            f"{other} is a FluxPipeline, but only Stable Diffusion 1.x and 2.x, "
            "Stable Diffusion XL or ",
        ),
    ):
        assert run(["--port", "0", "--studio", str(tmp_path / "s"), "--base", str(base)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(message)
        assert said.count("\n") == 1
        assert "--pretrained" not in said
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("damage", ["a file", "a file above it", "no database"])
def test_a_folder_that_cannot_be_used_is_one_sentence(
    damage: str, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio = tmp_path / "file" / "studio" if damage == "a file above it" else tmp_path / "file"
    if damage == "no database":
        studio.mkdir()
        (studio / "studio.sqlite").write_bytes(b"no database " * 1000)
    else:
        (tmp_path / "file").touch()
    assert run(["--port", "0", "--studio", str(studio), "--base", str(base_folder)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"--studio {studio} cannot be used (")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--share"], "--share opens the page to everyone: add --auth"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 opens the page to other machines: add --auth"),
        (["--host", "::"], "--host :: opens the page to other machines"),
        (["--host", "example.org"], "--host example.org opens the page to other machines"),
        (["--auth", "ann"], "--auth needs USER:PASSWORD"),
        (["--auth", "ann:"], "--auth needs USER:PASSWORD"),
        (["--auth", ":secret"], "--auth needs USER:PASSWORD"),
        (["--auth", "ann:1", "ann:2"], "--auth has a user twice"),
        (["--base", "./nothing"], "--base ./nothing does not exist"),
        (["--base", "webui"], "--base webui is not a diffusers folder"),
        (["--allowed_hosts", "http://a.org"], "--allowed_hosts 'http://a.org' is not a name"),
        (["--devices", "gpu7"], "There is no device gpu7"),
    ],
)
def test_unsafe_or_missing_options_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["--port", "0", "--studio", str(tmp_path), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "secret" not in said


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost"])
def test_a_local_server_needs_no_user(host: str) -> None:
    assert check(StudioOptions(host=host, port=0)) == []


def test_a_password_may_have_colons() -> None:
    users = check(StudioOptions(host="0.0.0.0", port=0, auth=("ann:a:b", "bob:c")))
    assert users == [("ann", "a:b"), ("bob", "c")]
