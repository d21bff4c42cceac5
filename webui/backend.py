"""What stands behind every tab of the page, and who may see what of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import torch

from loldu.errors import LoLDUError
from webui.drawing.album import Album
from webui.drawing.studio import Studio
from webui.engine.dispatcher import Dispatcher
from webui.engine.job import Job
from webui.engine.jobs import Jobs
from webui.library.collection import Library
from webui.teaching.uploads import Uploads


@dataclass(frozen=True)
class Backend:
    """One server's: the same for everyone who looks at the page.

    Attributes:
        base: The model that is trained and drawn with; the server's choice, never the browser's.
        jobs: The trainings, of everybody.
        dispatcher: Starts them.
        library: The concepts, of everybody.
        studio: Draws.
        uploads: Pictures from browsers.
        examples: Folder of folders of pictures to try it with; there may be none.
        album: What was drawn, of everybody.
    """

    base: str
    jobs: Jobs
    dispatcher: Dispatcher
    library: Library
    studio: Studio
    uploads: Uploads
    examples: Path
    album: Album

    @property
    def class_pictures(self) -> Path:
        """Where class pictures are kept for all trainings."""
        return self.jobs.folder / "class_pictures"

    @property
    def trains_on_gpu(self) -> bool:
        """Whether trainings may be in half precision."""
        return all(device.startswith("cuda") for device in self.dispatcher.devices)

    def job(self, job_id: str | None, request: gr.Request) -> Job:
        """A job of the one who asks.

        Raises:
            LoLDUError: there is none of that id, or it is somebody else's, which is not told.
        """
        job = self.jobs.get(job_id or "")
        if job.owner != owner(request):
            raise LoLDUError("There is no such training; reload the page.")
        return job


def open_backend(
    base: str, *, studio: Path, runs: Path, examples: Path, devices: Sequence[str] = ()
) -> Backend:
    """Open the folders of a server, and make what works on them.

    Args:
        base: the model that is trained and drawn with.
        studio: folder of queue, trainings and library; made if there is none.
        runs: folder of runs of the command line.
        examples: folder of folders of pictures to try it with.
        devices: where to train; every GPU there is, or else the CPU, unless given.

    Raises:
        LoLDUError: a folder or a device cannot be used.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    jobs = Jobs(studio)
    return Backend(
        base,
        jobs,
        Dispatcher(jobs, devices or gpus or ["cpu"]),
        Library(studio / "library", runs, jobs),
        Studio(base),
        Uploads(jobs.folder / "pictures"),
        examples,
        Album(jobs.folder / "album"),
    )


def owner(request: gr.Request) -> str:
    """Whose jobs and concepts these are: the user's who logged in, or of the one who needs not."""
    return request.username or ""
