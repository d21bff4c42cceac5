"""A base that is deleted or damaged while the studio runs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loldu.errors import LoLDUError
from webui.backend import open_backend
from webui.drawing.studio import Task, Watch
from webui.engine.job import Status


def test_without_its_base_the_studio_queues_and_draws_nothing(
    base_folder: Path, tmp_path: Path, pictures: Path, watch: Watch
) -> None:
    base = shutil.copytree(base_folder, tmp_path / "base")
    folders = {"studio": tmp_path / "studio", "runs": tmp_path, "examples": tmp_path}
    backend = open_backend(str(base), devices=["cpu"], **folders)
    options = {
        "pretrained_model_name_or_path": str(base),
        "instance_data_dir": str(pictures),
        "instance_prompt": "a photo of sks toy",
    }
    stopped = backend.jobs.submit("toy", "ann", options)
    backend.jobs.stop(stopped.id)
    actions: list[Callable[[], object]] = [
        lambda: backend.jobs.submit("toy", "ann", options),
        lambda: backend.jobs.submit_score("toy", "ann", "x", tmp_path, {}),
        lambda: backend.jobs.resume(stopped.id),
        lambda: backend.studio.draw_base(Task(("a",), (0,), "", 1, 1.0), [], watch),
        backend.require_base,
    ]
    for damage, message in (
        (
            lambda: (base / "vae").rename(tmp_path / "vae"),
            f"damaged (The base {base} lacks its folder vae",
        ),
        (lambda: base.rename(tmp_path / "away"), f"gone ({base}): put it back, or start"),
    ):
        damage()
        for act in actions:
            with pytest.raises(LoLDUError) as caught:
                act()
            assert str(caught.value).startswith(f"The base of this server is {message}")
    assert [job.status for job in backend.jobs.list()] == [Status.STOPPED]
    assert len([*(backend.jobs.folder / "runs").iterdir()]) == 1

    (tmp_path / "away").rename(base)
    (tmp_path / "vae").rename(base / "vae")
    backend.jobs.resume(stopped.id)
    assert len(backend.studio.draw_base(Task(("a",), (0,), "", 1, 1.0), [], watch)) == 1


def test_a_base_of_the_hub_is_not_checked_again(tmp_path: Path) -> None:
    folders = {"studio": tmp_path / "studio", "runs": tmp_path, "examples": tmp_path}
    backend = open_backend("some/base", devices=["cpu"], **folders)
    backend.require_base()
