import socket

import pytest

from webui.__main__ import run


def test_help_explains_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["--help"])
    told = capsys.readouterr().out
    for flag in ("--host", "--port", "--base", "--runs"):
        assert flag in told


def test_a_port_that_is_taken_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["--port", str(port)]) == 2
    assert f"--port {port} cannot be listened on" in capsys.readouterr().err
