import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loldu import ConceptError
from loldu.errors import LoLDUError
from loldu.pictures.open import load_image
from tests.webui.concepts import write
from trainer.__main__ import run
from webui.engine.job import Status
from webui.engine.jobs import Jobs
from webui.library.collection import Library
from webui.library.entry import CONCEPT, Entry
from webui.library.export import export_as_lora, export_concept, export_zip, file_name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("My Rabbit, step 100", "My Rabbit, step 100"),
        ("../../etc/passwd", "etc-passwd"),
        ("Häschen\u202e\x00.exe", "Häschen-.exe"),
        ("<b>兔</b>", "b-兔-b"),
        ("兔", "兔"),
        ("***", "concept"),
        ("nul", "concept nul"),
        ("x" * 100, "x" * 60),
        ("--output", "output"),
    ],
)
def test_a_file_name_is_one_on_every_system(name: str, plain: str) -> None:
    assert file_name(name) == plain


@pytest.fixture
def library(jobs: Jobs, tmp_path: Path) -> Library:
    return Library(jobs.folder / "library", tmp_path / "runs", jobs)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def trained(base_folder: Path, pictures: Path, jobs: Jobs, library: Library) -> Entry:
    """The concept of a training of the studio that has finished."""
    options = {
        "pretrained_model_name_or_path": base_folder,
        "instance_data_dir": pictures,
        "instance_prompt": "a photo of sks toy",
        "class_prompt": ["a photo of a toy"],
        "resolution": 16,
        "max_train_steps": 2,
        "learning_rate": 0.1,
        "num_inference_steps": 1,
        "rank": 4,
    }
    job = jobs.submit("My toy", "ann", options)
    jobs.begin(job, "cpu")
    assert run(["--preset", str(job.folder / "options.toml"), "--output_dir", str(job.folder)]) == 0
    jobs.end(job, Status.FINISHED)
    return library.of_job(job)


def test_export_and_import_are_bit_identical(trained: Entry, library: Library, out: Path) -> None:
    file = export_concept(trained, out)
    assert file.name == "My toy.safetensors"
    again = library.add(file, file.name, "bob")
    assert again.name == trained.name == "My toy"
    assert again.path.read_bytes() == trained.path.read_bytes()
    (out / "more").mkdir()
    assert export_concept(again, out / "more").read_bytes() == file.read_bytes()
    again.path.unlink()
    with pytest.raises(LoLDUError, match="The file of this concept is gone"):
        export_concept(again, out)


def test_an_exported_lora_equals_that_of_the_training(
    trained: Entry, library: Library, jobs: Jobs, base_folder: Path, out: Path
) -> None:
    of_training = jobs.get(trained.id).folder / "pytorch_lora_weights.safetensors"
    copied = export_as_lora(trained, "not needed", of_training, out)
    assert copied.read_bytes() == of_training.read_bytes()
    elsewhere = library.add(trained.path, "from elsewhere", "bob")
    made = export_as_lora(elsewhere, str(base_folder), None, out)
    assert made.name == "from elsewhere-lora.safetensors"
    ours, theirs = load_file(made), load_file(of_training)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-6)
    with safe_open(made, framework="pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "sks toy"


def test_a_lora_of_another_base_is_refused(
    library: Library, base_folder: Path, tmp_path: Path
) -> None:
    entry = library.add(write(tmp_path / "upload"), "rabbit", "ann")
    with pytest.raises(ConceptError, match=r"^rabbit was made for another base model"):
        export_as_lora(entry, str(base_folder), None, tmp_path)


def test_a_zip_has_the_card_and_the_samples(trained: Entry, jobs: Jobs, out: Path) -> None:
    lora = jobs.get(trained.id).folder / "pytorch_lora_weights.safetensors"
    with zipfile.ZipFile(export_zip(trained, lora, out)) as archive:
        names = set(archive.namelist())
        assert archive.read(CONCEPT) == trained.path.read_bytes()
        card = archive.read("README.md").decode()
    assert "# sks toy" in card
    assert {"samples/0-concept.png", "samples/0-base.png", lora.name, "metrics.jsonl"} < names
    assert "config.toml" not in names  # it names places of this machine
    with zipfile.ZipFile(export_zip(replace(trained, name="../x"), None, out)) as archive:
        assert lora.name not in archive.namelist()


def test_a_zip_can_be_imported_with_its_name_and_pictures(
    trained: Entry, library: Library, out: Path
) -> None:
    library.rename(trained.id, "ann", "Häschen: <b>das</b> 1/2")
    named = library.get(trained.id, "ann")
    again = library.add(export_zip(named, None, out), "x.zip", "bob")
    assert again.name == named.name
    for name in (CONCEPT, "README.md", "metrics.jsonl"):
        assert (again.folder / name).read_bytes() == (named.folder / name).read_bytes()
    assert [path.name for path in again.samples] == [path.name for path in named.samples]
    assert load_image(again.samples[0]).tobytes() == load_image(named.samples[0]).tobytes()
    assert not (again.folder / "pytorch_lora_weights.safetensors").exists()


def test_a_hostile_zip_writes_nothing_outside_and_is_refused(
    library: Library, jobs: Jobs, tmp_path: Path
) -> None:
    concept = write(tmp_path / "good.safetensors").read_bytes()
    bomb = {CONCEPT: bytes(17 * 2**20)}
    cut = {CONCEPT: concept[:-9]}
    for content, message in (
        ({"x.txt": b"x"}, r"^bad has no concept\.safetensors: import a zip that Export made"),
        (bomb, r"of bad has 16 MB, so it is not a concept"),
        (cut, r"^bad "),
    ):
        with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        with pytest.raises(LoLDUError, match=message):
            library.add(tmp_path / "bad.zip", "bad.zip", "ann")
    damaged = (tmp_path / "bad.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(damaged[:-30])
    with pytest.raises(LoLDUError, match=r"^bad is not a zip that can be read"):
        library.add(tmp_path / "bad.zip", "bad.zip", "ann")
    assert library.list("ann") == ()

    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr(CONCEPT, concept)
        for name in ("../../evil", "/tmp/evil", "entry.json", "config.toml", "samples/../evil"):
            archive.writestr(name, "[base]")
        archive.writestr("samples/0-concept.png", "no picture")
    entry = library.add(tmp_path / "odd.zip", "odd.ZIP", "ann")
    assert (entry.name, entry.samples) == ("odd", [])
    names = {path.name for path in entry.folder.rglob("*") if path.is_file()}
    assert names == {CONCEPT, "config.toml", "entry.json"}
    assert "[base]\npretrained_model" in (entry.folder / "config.toml").read_text()
    assert not [*tmp_path.rglob("evil")]


def test_a_zip_of_a_file_from_elsewhere_has_a_short_card(
    library: Library, out: Path, tmp_path: Path
) -> None:
    entry = library.add(write(tmp_path / "upload"), "rabbit", "ann")
    with zipfile.ZipFile(export_zip(entry, tmp_path / "none", out)) as archive:
        assert sorted(archive.namelist()) == ["README.md", CONCEPT]
        card = archive.read("README.md").decode()
    assert card.startswith("# sks toy\n\nA concept for `tiny`. Trained for 300 steps.")
