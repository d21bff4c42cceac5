"""`python -m webui`; `--help` explains every option."""

import logging
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

logger = logging.getLogger("webui")


@dataclass(frozen=True)
class Options:
    """Draw with concepts in a browser: the base and the concept side by side."""

    # Address to listen on; with another than this one, everyone who reaches it can use the page.
    host: str = "127.0.0.1"
    # Port to listen on.
    port: int = 7860
    # The base the page opens with: a diffusers folder, a hub id or a .safetensors checkpoint.
    pretrained_model_name_or_path: str = "pocket/base"
    # Folder of training runs; every RUNS/*/concept.safetensors can be chosen on the page.
    runs: Path = Path("runs")


def run(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted, or tell a person's mistake in one line with status 2."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    options = tyro.cli(Options, args=argv, prog="python -m webui", use_underscores=True)

    try:
        socket.create_server((options.host, options.port)).close()
    except OSError as error:
        sys.stderr.write(
            f"--host {options.host} --port {options.port} cannot be listened on "
            f"({error.strerror}): give another.\n"
        )
        return 2

    from webui.app import CSS, THEME, create_demo
    from webui.drawing import Studio

    demo = create_demo(Studio(options.runs), options.pretrained_model_name_or_path)
    _, url, _ = demo.launch(
        server_name=options.host,
        server_port=options.port,
        share=False,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        max_file_size="16mb",
        theme=THEME,
        css=CSS,
        quiet=True,
        prevent_thread_lock=True,
    )
    logger.info("Open %s in a browser; Ctrl-C stops the server.", url)
    demo.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(run())
