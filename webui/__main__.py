"""`python -m webui`; `--help` explains every option."""

import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from loldu.command import run_command
from loldu.errors import LoLDUError

logger = logging.getLogger("webui")


@dataclass(frozen=True)
class Options:
    """Teach a model concepts in a browser, and draw with them.

    Trainings outlive page and server: closed and started again, both find them.
    """

    # The base of all that is trained and drawn: a diffusers folder, a hub id or a .safetensors
    # checkpoint.
    base: str = "pocket/base"
    # Address to listen on; another than this machine's own (127.0.0.1) needs --auth.
    host: str = "127.0.0.1"
    # Port to listen on.
    port: int = 7860
    # Who may log in, as USER:PASSWORD; several may be given, and each sees only what is theirs.
    auth: tuple[str, ...] = ()
    # Also open the page to the internet by a link of gradio's; needs --auth.
    share: bool = False
    # Where trainings run, one at a time on each, such as cuda:0 cuda:1; every GPU there is, or else
    # the CPU, unless given.
    devices: tuple[str, ...] = ()
    # Folder of the studio: its queue, its trainings and its library. Keep it, and they are kept.
    studio: Path = Path("runs/studio")
    # Folder of runs of the command line, whose concepts everybody finds in the library too.
    runs: Path = Path("runs")
    # Folder of folders of pictures to try it with; need not be there.
    examples: Path = Path("datasets/concepts")


def run(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted, or tell a person's mistake in one line with status 2."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)

    def serve_page() -> None:
        options = tyro.cli(Options, args=argv, prog="python -m webui", use_underscores=True)
        serve(options, check(options))

    return run_command(serve_page)


def check(options: Options) -> list[tuple[str, str]]:
    """The users, of options that can be served by.

    Raises:
        LoLDUError: they cannot.
    """
    users = []
    for text in options.auth:
        user, _, password = text.partition(":")
        if not (user and password):
            raise LoLDUError("--auth takes USER:PASSWORD, neither of them empty.")
        users.append((user, password))
    if len(dict(users)) < len(users):
        raise LoLDUError("--auth names a user twice: give each one password.")
    if not users and options.share:
        raise LoLDUError("--share opens the page to everyone: also give --auth USER:PASSWORD.")
    if not users and not _is_loopback(options.host):
        raise LoLDUError(
            f"--host {options.host} lets other machines in: also give --auth USER:PASSWORD."
        )
    try:
        socket.create_server((options.host, options.port)).close()
    except OSError as error:
        raise LoLDUError(
            f"--host {options.host} --port {options.port} cannot be listened on "
            f"({error.strerror}): give another."
        ) from error
    return users


def serve(options: Options, users: list[tuple[str, str]]) -> None:
    """Serve the page until interrupted; what trains then goes on.

    Raises:
        LoLDUError: the base, the studio's folder or a device cannot be used.
    """
    # Uploads and pictures on their way to a browser lie with the rest, not in a place of all users.
    cache = options.studio.absolute() / "cache"
    os.environ["GRADIO_TEMP_DIR"] = str(cache)

    from loldu.base.source import check_source
    from webui.app import create_demo
    from webui.backend import open_backend
    from webui.style import CSS, THEME

    check_source(options.base, "--base")
    backend = open_backend(
        options.base,
        studio=options.studio,
        runs=options.runs,
        examples=options.examples,
        devices=options.devices,
    )
    backend.dispatcher.start()
    try:
        demo = create_demo(backend)
        _, url, shared = demo.launch(
            server_name=options.host,
            server_port=options.port,
            auth=users or None,
            share=options.share,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            max_file_size="32mb",
            theme=THEME,
            css=CSS,
            quiet=True,
            prevent_thread_lock=True,
        )
        logger.info("Open %s in a browser; Ctrl-C stops the server.", shared or url)
        demo.block_thread()
    finally:
        backend.dispatcher.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(run())
