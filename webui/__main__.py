"""`python -m webui`; `--help` explains every option."""

import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import tyro

from loldu.command import extra, program, run_command
from loldu.errors import LoLDUError
from loldu.presets import installed_path

logger = logging.getLogger("webui")


@dataclass(frozen=True)
class StudioOptions:
    """Serve a web page to train concepts, draw with them and score them.

    Trainings continue when the page or the server is closed; both find them again.
    """

    # Base model: a diffusers folder, a Hub id or a .safetensors checkpoint.
    base: str = field(default_factory=lambda: installed_path("pocket/base"))
    # Address to listen on; any address but this machine's own (127.0.0.1) needs --auth.
    host: str = "127.0.0.1"
    # Other names of this server in browsers, such as that of a proxy (studio.example.org). It
    # answers to localhost, to --host and to its share link; with --host 0.0.0.0 to any IP address.
    allowed_hosts: tuple[str, ...] = ()
    # Port to listen on.
    port: int = 7860
    # Users as USER:PASSWORD; each sees only their own trainings, concepts and pictures.
    auth: tuple[str, ...] = ()
    # Also open the page to the internet through gradio's share link; needs --auth.
    share: bool = False
    # Devices for trainings, such as cuda:0 cuda:1, one training at a time on each. By default all
    # GPUs, or else the CPU.
    devices: tuple[str, ...] = ()
    # Folder of the queue, the trainings and the library.
    studio: Path = Path("runs/studio")
    # Folder of runs of the command line; their concepts are in everybody's library.
    runs: Path = Path("runs")
    # Folder with a folder of pictures per example; it may be missing.
    examples: Path = field(default_factory=lambda: Path(installed_path("datasets/concepts")))


def run(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted, and return the exit status: 2 after a user's mistake."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)

    def serve_page() -> None:
        options = tyro.cli(StudioOptions, args=argv, prog=program("webui"), use_underscores=True)
        serve(options, check(options))

    return run_command(serve_page)


def check(options: StudioOptions) -> list[tuple[str, str]]:
    """Return the users after checking all options.

    Raises:
        LoLDUError: If the page cannot be served with these options.
    """
    users = []
    for text in options.auth:
        user, _, password = text.partition(":")
        if not (user and password):
            raise LoLDUError("--auth needs USER:PASSWORD, and neither may be empty.")
        users.append((user, password))
    if len(dict(users)) < len(users):
        raise LoLDUError("--auth has a user twice: give each user one password.")
    if not users and options.share:
        raise LoLDUError("--share opens the page to everyone: add --auth USER:PASSWORD.")
    if not users and not is_loopback(options.host):
        raise LoLDUError(
            f"--host {options.host} opens the page to other machines: add --auth USER:PASSWORD."
        )
    require_free_port(options.host, options.port)
    return users


def require_free_port(host: str, port: int) -> None:
    """Refuse an address that a server cannot listen on.

    Raises:
        LoLDUError: If it is in use, or not of this machine.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise LoLDUError(
            f"Cannot listen on --host {host} --port {port} ({error.strerror}): choose another."
        ) from error


def serve(options: StudioOptions, users: list[tuple[str, str]]) -> None:
    """Serve the page until interrupted; running trainings continue.

    Raises:
        LoLDUError: If the base, the studio's folder or a device cannot be used.
    """
    # Gradio's cache holds private pictures: keep it out of the shared temporary folder.
    cache = options.studio.absolute() / "cache"
    os.environ["GRADIO_TEMP_DIR"] = str(cache)

    with extra("webui"):
        from webui.access import AllowedHosts, protection
        from webui.app import create_demo
        from webui.backend import open_backend
        from webui.style import CSS, JS, LOGO, THEME

    hosts = AllowedHosts(options.host, options.allowed_hosts)
    base = installed_path(options.base)
    check_base_option(base)
    backend = open_backend(
        base,
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
            js=JS,
            favicon_path=LOGO,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": protection(hosts)},
        )
        if shared:
            hosts.add(urlsplit(shared).hostname or "")
        logger.info("Open %s in a browser; Ctrl-C stops the server.", shared or url)
        demo.block_thread()
    finally:
        backend.dispatcher.close()


def check_base_option(base: str) -> None:
    """Refuse a base that jobs could not use, before the page is served.

    Raises:
        LoLDUError: If the base does not exist, lacks a part or cannot be trained.
    """
    from loldu.base.config import BaseModelConfig
    from loldu.base.open import check_base

    try:
        check_base(BaseModelConfig(base))
    except LoLDUError as error:
        sentence = str(error).replace("--pretrained_model_name_or_path", "--base")
        raise LoLDUError(sentence) from error


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(run())
