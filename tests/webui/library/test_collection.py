"""The library: collected and refused concepts, kills, races and strangers."""

import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from PIL import Image

from loldu import ConceptError
from loldu.base.config import BaseModelConfig
from loldu.base.record import base_options
from loldu.errors import LoLDUError
from loldu.files import DRAFTS
from loldu.pictures.open import load_image
from tests.webui.concepts import write
from webui.engine.job import Job, Status
from webui.engine.jobs import Jobs
from webui.library import collection, scoring
from webui.library.about import about
from webui.library.collection import Library
from webui.library.entry import CONCEPT
from webui.library.imported import MOST_BYTES


def result(folder: Path, pictures: Path | None = None) -> None:
    """Write the files of a finished training."""
    write(folder / CONCEPT)
    taught_with = f"instance_data_dir = '{pictures}'\n" if pictures else ""
    (folder / "config.toml").write_text(f"[instance]\n{taught_with}")
    (folder / "README.md").write_text("the card")
    (folder / "samples").mkdir()
    Image.new("RGB", (4, 4), "red").save(folder / "samples" / "0-concept.png")


@pytest.fixture
def finished(jobs: Jobs) -> Callable[..., Job]:
    def finished(owner: str = "ann", name: str = "rabbit") -> Job:
        options = {"instance_data_dir": "pictures", "instance_prompt": "a photo of sks toy"}
        job = jobs.submit(name, owner, options)
        jobs.begin(job, "cpu")
        jobs.end(job, Status.FINISHED)
        result(job.folder)
        return jobs.get(job.id)

    return finished


@pytest.fixture
def open_library(jobs: Jobs, tmp_path: Path) -> Callable[..., Library]:
    folder, runs = jobs.folder / "library", tmp_path / "runs"
    return lambda **options: Library(folder, runs, jobs, **options)


@pytest.fixture
def library(open_library: Callable[..., Library]) -> Library:
    return open_library()


def names(library: Library, owner: str = "ann") -> list[str]:
    return [entry.name for entry in library.list(owner)]


# ----------------------------------------------------------------------------- collecting


def test_a_result_is_collected_once(
    library: Library, open_library: Callable[..., Library], finished: Callable[..., Job]
) -> None:
    job = finished()
    shutil.rmtree(job.folder / "samples")
    shutil.copytree(job.folder, other := job.folder.with_name("pictures"))
    for index in range(7):
        Image.new("RGB", (600, 400)).save(other / f"{index}.png")
    (job.folder / "config.toml").write_text(f"[instance]\ninstance_data_dir = '{other}'\n")
    (entry,) = library.list("ann")
    assert library.list("ann") == open_library().list("ann") == (entry,)
    assert (entry.id, entry.name, entry.job, entry.step) == (job.id, "rabbit", job.id, None)
    assert entry.path.read_bytes() == (job.folder / CONCEPT).read_bytes()
    assert (entry.folder / "README.md").read_text() == "the card"
    assert [load_image(path).size for path in entry.pictures] == [(256, 171)] * 5
    assert library.list("bob") == ()
    assert library.of_job(job) == library.get(job.id, "ann") == entry
    assert entry.token == "sks"
    shutil.rmtree(job.folder)
    assert library.list("ann") == (entry,)


def test_other_jobs_are_no_concepts(library: Library, jobs: Jobs, tmp_path: Path) -> None:
    options = {"instance_data_dir": "pictures", "instance_prompt": "a photo of sks toy"}
    trains = jobs.submit("trains", "ann", options)
    write(trains.folder / CONCEPT)
    files = write(tmp_path / "files" / CONCEPT).parent
    scored = {"prompts": ["a"], "other_prompts": ["b"]}
    scores = jobs.submit_score("scores", "ann", "an id", files, scored)
    write(scores.folder / CONCEPT)
    jobs.stop(trains.id)
    jobs.begin(scores, "cpu")
    jobs.end(scores, Status.FINISHED)
    assert library.list("ann") == ()
    with pytest.raises(LoLDUError, match="trains has no concept in the library"):
        library.of_job(trains)


def test_collecting_at_once_is_collecting_once(
    open_library: Callable[..., Library], finished: Callable[..., Job]
) -> None:
    for _ in range(3):
        finished()
    found: list[tuple[str, ...]] = []
    libraries = [open_library() for _ in range(4)]  # as many servers
    together = threading.Barrier(8)

    def look(library: Library) -> None:
        together.wait()
        found.append(tuple(entry.id for entry in library.list("ann")))

    threads = [threading.Thread(target=look, args=(each,)) for each in libraries * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(set(found[0])) == 3


@pytest.mark.parametrize("point", ["copyfile", "take", "write_atomically"])
def test_a_server_killed_while_it_collects_has_collected_nothing(
    point: str,
    open_library: Callable[..., Library],
    finished: Callable[..., Job],
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished()
    pid = os.fork()
    if pid == 0:  # a server of its own, which dies there
        library = open_library()
        if point == "copyfile":
            shutil.copyfile = lambda *_: os._exit(9)
        else:
            setattr(collection, point, lambda *_: os._exit(9))
        library.list("ann")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    (draft,) = [path.name for path in (jobs.folder / "library").iterdir() if path.is_dir()]
    assert fnmatch(draft, DRAFTS)
    library = open_library()
    assert not list((jobs.folder / "library").glob(DRAFTS))
    assert names(library) == ["rabbit"]


def test_the_page_survives_a_full_disk(
    library: Library, finished: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished()
    with monkeypatch.context() as full:
        full.setattr(collection, "take", _raise(OSError(28, "No space left on device")))
        assert library.list("ann") == ()
    assert names(library) == ["rabbit"]


# ---------------------------------------------------------------------------- removing, names


def test_a_removed_concept_returns_only_on_request(
    library: Library, open_library: Callable[..., Library], finished: Callable[..., Job], jobs: Jobs
) -> None:
    job = finished()
    (entry,) = library.list("ann")
    library.rename(entry.id, "ann", " <b>hare</b>\n")
    library.remove(entry.id, "ann")
    for looked_at in (library, open_library()):
        assert looked_at.list("ann") == ()
        with pytest.raises(LoLDUError, match="There is no such concept"):
            looked_at.get(entry.id, "ann")
    with pytest.raises(LoLDUError, match="rabbit has no concept"):
        library.of_job(job)
    with pytest.raises(LoLDUError, match="There is no such concept"):
        library.remove(entry.id, "ann")
    library.restore(entry.id, "ann")
    assert library.list("ann") == (replace(entry, name="<b>hare</b>"),)

    library.remove(entry.id, "ann")
    path = entry.folder / "entry.json"
    long_ago = json.loads(path.read_text()) | {"removed": 1.0}
    path.write_text(json.dumps(long_ago))
    again = open_library()
    assert [file.name for file in entry.folder.iterdir()] == ["entry.json"]
    assert again.list("ann") == ()
    with pytest.raises(LoLDUError, match="no longer in the trash"):
        again.restore(entry.id, "ann")
    assert (job.folder / CONCEPT).exists()


@pytest.mark.parametrize("stranger", ["", ".", "..", "../studio.sqlite", ".new-x", "x" * 1000])
def test_an_id_is_looked_up_and_never_a_path(
    stranger: str, library: Library, finished: Callable[..., Job]
) -> None:
    finished()
    library.list("ann")
    for ask in (library.get, library.remove, library.restore):
        with pytest.raises(LoLDUError, match=r"no such concept|no longer in the trash"):
            ask(stranger, "ann")
    with pytest.raises(LoLDUError, match="There is no such concept"):
        library.rename(stranger, "ann", "x")


def test_concepts_of_other_owners_are_hidden(
    library: Library, finished: Callable[..., Job]
) -> None:
    finished()
    (entry,) = library.list("ann")
    for ask in (library.get, library.remove, library.restore):
        with pytest.raises(LoLDUError, match=r"no such concept|no longer in the trash"):
            ask(entry.id, "bob")
    with pytest.raises(LoLDUError, match="There is no such concept"):
        library.rename(entry.id, "bob", "x")
    library.remove(entry.id, "ann")
    with pytest.raises(LoLDUError, match="no longer in the trash"):
        library.restore(entry.id, "bob")
    assert names(library) == []


def test_concepts_from_the_command_line_are_shared(library: Library, tmp_path: Path) -> None:
    write(tmp_path / "runs" / "demo" / CONCEPT)
    (entry,) = library.list("ann")
    assert library.list("bob") == (entry,)
    assert (entry.name, entry.owner) == ("demo", None)
    for ask in (
        lambda: library.remove(entry.id, "ann"),
        lambda: library.rename(entry.id, "ann", "mine"),
    ):
        with pytest.raises(LoLDUError, match="trained from the command line"):
            ask()
    assert library.get(entry.id, "ann") == entry


# ------------------------------------------------------------------------- keeping a step


def checkpoint(job: Job, step: int) -> Path:
    folder = job.folder / f"checkpoint-{step:06d}"
    write(folder / CONCEPT, steps=step)
    (folder / "config.toml").write_text("[instance]\n")
    (folder / "state.json").write_text("{}")
    return folder


def test_a_step_is_kept(library: Library, finished: Callable[..., Job]) -> None:
    job = finished()
    folder = checkpoint(job, 100)
    drawn = job.folder / "validation" / "pictures"
    drawn.mkdir(parents=True)
    for name in ("000100-00", "000100-01", "000200-00", "base-00"):
        (drawn / f"{name}.png").write_text(name)
    entry = library.keep(job, 100, "early")
    assert (entry.name, entry.job, entry.step) == ("early", job.id, 100)
    assert entry.path.read_bytes() == (folder / CONCEPT).read_bytes()
    assert [path.read_text() for path in entry.samples] == ["000100-00", "000100-01"]
    assert (entry.folder / "samples" / "0-base.png").read_text() == "base-00"
    assert {one.id for one in library.list("ann")} == {entry.id, job.id}

    library.remove(entry.id, "ann")
    again = library.keep(job, 100, "earlier")
    assert again == replace(entry, name="earlier")
    assert library.get(entry.id, "ann") == again
    with pytest.raises(LoLDUError, match="rabbit has no checkpoint of step 7; choose another"):
        library.keep(job, 7, "x")
    shutil.rmtree(folder)
    assert library.get(entry.id, "ann") == again


def test_a_checkpoint_deleted_while_it_is_copied_leaves_nothing(
    library: Library, finished: Callable[..., Job], jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished()
    folder = checkpoint(job, 100)
    whole = collection.take

    def take(source: Path, into: Path) -> None:
        shutil.rmtree(folder)
        whole(source, into)

    with monkeypatch.context() as racing:
        racing.setattr(collection, "take", take)
        with pytest.raises(LoLDUError, match="step 100 is being removed"):
            library.keep(job, 100, "x")
    assert [entry.id for entry in library.list("ann")] == [job.id]
    assert not list((jobs.folder / "library").glob(DRAFTS))


# ------------------------------------------------------------------------ files from elsewhere


def test_a_file_from_elsewhere(library: Library, jobs: Jobs, tmp_path: Path) -> None:
    file = write(tmp_path / "upload" / "blob")
    entry = library.add(file, "../../my <b>rabbit.safetensors", "ann")
    assert entry.name == "my <b>rabbit"
    assert entry.path.read_bytes() == file.read_bytes()
    assert entry.folder.parent == jobs.folder / "library"
    assert entry.id.isalnum()
    assert library.list("ann") == (entry,)
    other = library.add(file, "", "ann")
    assert (other.name, len(library.list("ann"))) == ("concept", 2)


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def _header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _lora() -> bytes:
    from safetensors.torch import save

    return save({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("content", "error_text"),
    [
        (lambda whole: b"", "rabbit is not a readable .safetensors file"),
        (lambda whole: b"just some text", "rabbit is not a readable .safetensors file"),
        (lambda whole: whole[:-4], "rabbit is not a readable .safetensors file"),
        (lambda whole: whole[:-4] + b"evil", "rabbit is damaged, its checksum does not fit"),
        (lambda whole: _header(b"{}", 2**30), "rabbit is not a readable .safetensors file"),
        (lambda whole: _header(b"{" * 10_000), "rabbit is not a readable .safetensors file"),
        (lambda whole: _header(b"{}"), "rabbit is a .safetensors file but not a LoLDU concept"),
        (lambda whole: _lora(), "rabbit is a .safetensors file but not a LoLDU concept"),
        (lambda whole: b"\x80\x04.", "rabbit is not a readable .safetensors file"),
    ],
)
def test_a_hostile_file_is_refused_and_leaves_nothing(
    content: Callable[[bytes], bytes], error_text: str, library: Library, jobs: Jobs, tmp_path: Path
) -> None:
    file = write(tmp_path / "upload")
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(ConceptError, match=f"^{error_text}") as refused:
        library.add(file, "rabbit.safetensors", "ann")
    assert str(tmp_path) not in str(refused.value)
    assert library.list("ann") == ()
    assert [path.name for path in (jobs.folder / "library").iterdir()] == [".lock"]


def test_a_large_file_is_not_even_read(library: Library, tmp_path: Path) -> None:
    file = tmp_path / "upload"
    with file.open("wb") as sparse:
        sparse.truncate(MOST_BYTES + 1)
    with pytest.raises(LoLDUError, match="rabbit has 16 MB, so it is not a concept"):
        library.add(file, "rabbit.safetensors", "ann")


@pytest.mark.parametrize(
    "metadata",
    [
        {"base": {"vae": "/etc/passwd", "single_file_config": "../../x", "revision": "x"}},
        {"base": "a name", "scores": {"dino": "<b>", "clip_i": float("1e999") > 0}},
        {"token": "<b>\u202e\n" * 500, "steps": "many", "scores": ["a"]},
    ],
)
def test_metadata_of_a_file_is_plain_text_without_paths(
    metadata: dict[str, object], library: Library, tmp_path: Path
) -> None:
    file = write(tmp_path / "upload", of="server/base", **metadata)
    entry = library.add(file, "x", "ann")
    concept = collection.read_concept(entry.path)
    for place in (None, "server/base", "elsewhere"):
        wanted = BaseModelConfig(place or "server/base")
        assert base_options(concept, entry.path, place) == wanted
    shown = about(entry.path)
    assert shown.token is None or len(shown.token) <= 200
    assert shown.token is None or shown.token.isprintable()
    assert all(isinstance(value, float) for value in shown.scores.values())
    assert entry.token == shown.token


def test_base_options_come_from_the_concept_file(library: Library, tmp_path: Path) -> None:
    read_as = {"prediction_type": "v_prediction", "clip_skip": 1}
    entry = library.add(write(tmp_path / "upload", base=read_as), "x", "ann")
    concept = collection.read_concept(entry.path)
    assert base_options(concept, entry.path, "here") == BaseModelConfig(
        "here", prediction_type="v_prediction", clip_skip=1
    )


def test_each_owner_has_a_quota_and_trash_is_deleted_first(
    open_library: Callable[..., Library], tmp_path: Path, finished: Callable[..., Job]
) -> None:
    library, file = open_library(max_entries=2), write(tmp_path / "upload")
    first, second = (library.add(file, name, "ann") for name in ("first", "second"))
    with pytest.raises(LoLDUError, match=r"Your library is full \(2 concepts, 0 MB\)"):
        library.add(file, "third", "ann")
    library.add(file, "bob's", "bob")
    library.remove(first.id, "ann")
    library.remove(second.id, "ann")
    third = library.add(file, "third", "ann")
    with pytest.raises(LoLDUError, match="no longer in the trash"):
        library.restore(first.id, "ann")
    library.restore(second.id, "ann")
    finished()  # a result is never refused
    assert set(names(library)) == {"second", "third", "rabbit"}
    small = open_library(max_bytes=third.path.stat().st_size)
    with pytest.raises(LoLDUError, match="Your library is full"):
        small.add(file, "fourth", "ann")


# ------------------------------------------------------------------------ files from anybody


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"name": "x"}',
        b'{"name": 5, "owner": "ann", "created": 1}',
        b'{"name": "x", "owner": "ann", "created": "long ago"}',
        b'{"name": "x", "owner": "ann", "created": NaN}',
        b'{"name": "x", "owner": "ann", "created": 1' + b"0" * 400 + b"}",
        b'{"name": "x", "owner": "ann", "created": 1, "news": 1}',
        b"[" * 100_000,
        b'{"name": "x", "owner": "ann", "created": 1, "step": "\xff"}',
    ],
)
def test_a_damaged_record_hides_its_concept_alone(
    content: bytes, library: Library, jobs: Jobs, tmp_path: Path
) -> None:
    kept = library.add(write(tmp_path / "kept.safetensors"), "kept", "ann")
    lost = library.add(write(tmp_path / "lost.safetensors"), "lost", "ann")
    (lost.folder / "entry.json").write_bytes(content)
    assert library.list("ann") == (kept,)
    library.rename(kept.id, "ann", "hare")
    assert library.add(kept.path, "another", "ann").name == "another"
    assert (lost.folder / CONCEPT).is_file()
    Library(jobs.folder / "library", tmp_path / "runs", jobs)


@pytest.mark.parametrize(
    "config",
    ["no toml [", "instance = 5", "[instance]\ninstance_data_dir = 7", "\udcff", "[a]\n" * 2],
)
def test_a_result_with_damaged_options_is_collected(
    config: str, library: Library, finished: Callable[..., Job]
) -> None:
    job = finished()
    (job.folder / "config.toml").write_bytes(config.encode(errors="surrogateescape"))
    (entry,) = library.list("ann")
    assert (entry.id, entry.pictures, entry.token) == (job.id, [], "sks")
    assert not scoring.has_true_pictures(entry)
    assert scoring.usual_steps(entry, "dreambooth") > 1


def test_a_folder_of_runs_with_a_name_that_is_not_unicode(library: Library, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path / "runs") + b"/caf\xe9"))
    write(folder / CONCEPT)
    (entry,) = library.list("ann")
    assert entry.name.encode() == entry.id.encode() == "caf\N{REPLACEMENT CHARACTER}".encode()
    assert library.get(entry.id, "bob").path.is_file()
