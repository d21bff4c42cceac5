"""Objects that all tabs share, and the owner of a request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Error as DatabaseError

import gradio as gr
import torch

from loldu.base.config import BaseModelConfig
from loldu.base.open import check_base
from loldu.errors import LoLDUError
from webui.access import VISITOR
from webui.drawing.album import Album
from webui.drawing.studio import Studio
from webui.engine.dispatcher import Dispatcher
from webui.engine.job import Job
from webui.engine.jobs import Jobs
from webui.library.collection import Library
from webui.teaching.draft import Drafts
from webui.teaching.uploads import Uploads


@dataclass(frozen=True)
class Backend:
    """Objects of one server, shared by everybody who uses the page.

    Attributes:
        base: Base model of the server; browsers cannot change it.
        require_base: Raises LoLDUError if the base was there at the start and is gone now.
        jobs: Trainings and scorings of all owners.
        dispatcher: Starts the jobs.
        library: Concepts of all owners.
        studio: Draws pictures.
        uploads: Uploaded pictures.
        examples: Folder with a folder of pictures per example; it may be missing.
        album: Drawn pictures of all owners.
        drafts: Forms of all owners that are not sent yet.
    """

    base: str
    require_base: Callable[[], None]
    jobs: Jobs
    dispatcher: Dispatcher
    library: Library
    studio: Studio
    uploads: Uploads
    examples: Path
    album: Album
    drafts: Drafts

    @property
    def class_pictures(self) -> Path:
        """Folder of the class pictures that all trainings share."""
        return self.jobs.folder / "class_pictures"

    @property
    def side_px(self) -> int | None:
        """Side of the pictures that a local base was trained on, or None if unknown."""
        folder = Path(self.base)
        try:
            family = check_base(BaseModelConfig(self.base)) if folder.is_dir() else None
            return family and family.resolution_of_folder(folder)
        except (LoLDUError, OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def trains_on_gpu(self) -> bool:
        """Whether all trainings run on GPUs and may use half precision."""
        return all(device.startswith("cuda") for device in self.dispatcher.devices)

    def job(self, job_id: str | None, request: gr.Request) -> Job:
        """Return a job of the person who asks.

        Raises:
            LoLDUError: If there is none of that id, or it belongs to somebody else.
        """
        job = self.jobs.get(job_id or "")
        if job.owner != owner(request):
            raise LoLDUError("There is no such training; reload the page.")
        return job


def open_backend(
    base: str, *, studio: Path, runs: Path, examples: Path, devices: Sequence[str] = ()
) -> Backend:
    """Open the folders of a server.

    Args:
        base: Base model.
        studio: Folder of queue, trainings and library; made if missing.
        runs: Folder of runs of the command line.
        examples: Folder with a folder of pictures per example.
        devices: Devices to train on; by default all GPUs, or else the CPU.

    Raises:
        LoLDUError: If a folder or a device cannot be used.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    require_base = base_check(base)
    try:
        jobs = Jobs(studio, before_queuing=require_base)
        uploads = Uploads(jobs.folder / "pictures")
        return Backend(
            base,
            require_base,
            jobs,
            Dispatcher(jobs, devices or gpus or ["cpu"]),
            Library(studio / "library", runs, jobs),
            Studio(base, before_loading=require_base),
            uploads,
            examples,
            Album(jobs.folder / "album"),
            Drafts(jobs.folder / "drafts", uploads.sent),
        )
    except (OSError, DatabaseError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LoLDUError(
            f"--studio {studio} cannot be used ({reason}): name another folder."
        ) from error


def base_check(base: str) -> Callable[[], None]:
    """Return a function that raises LoLDUError if a local base is gone or incomplete.

    A base of the hub is downloaded again when it is needed, so it is not checked.
    """
    if not Path(base).exists():
        return lambda: None

    def require_base() -> None:
        cure = "put it back, or start the server with another --base"
        if not Path(base).exists():
            raise LoLDUError(f"The base of this server is gone ({base}): {cure}.")
        try:
            check_base(BaseModelConfig(base))
        except LoLDUError as error:
            sentence = str(error).rstrip(".")
            raise LoLDUError(f"The base of this server is damaged ({sentence}): {cure}.") from error

    return require_base


def owner(request: gr.Request) -> str:
    """Return the username, or "" without authentication."""
    return request.username or ""


def visitor(request: gr.Request) -> str:
    """Return the username, or else what tells this browser from others, for its drafts."""
    cookies = {} if request.username else getattr(request, "cookies", None) or {}
    return request.username or f"visitor {cookies.get(VISITOR, '')}"
