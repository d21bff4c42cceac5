from pathlib import Path

import datasets
import pytest

from experiments import data
from experiments.data import digest, entries, entry, load_data
from loldu.errors import LoLDUError

MANIFEST = """
[birds]
title = "Birds"
licence = "CC0-1.0"
id = "someone/birds"
columns = { image = "img", label = "fine_label" }
splits.train = { split = "train", rows = 3 }
splits.test = { split = "validation" }
"""


@pytest.fixture(autouse=True)
def manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "some.toml").write_text(MANIFEST)
    monkeypatch.setattr(data, "MANIFESTS", tmp_path)
    entries.cache_clear()
    load_data.cache_clear()
    yield tmp_path
    entries.cache_clear()
    load_data.cache_clear()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    asked = []
    rows = datasets.Dataset.from_dict(
        {"img": ["a", "b", "c"], "fine_label": [0, 1, 0], "coarse_label": [0, 0, 0]}
    )

    def load_dataset(*names, **options) -> datasets.Dataset:  # noqa: ANN002, ANN003
        asked.append((*names, options["split"]))
        return rows

    monkeypatch.setattr(data.datasets, "load_dataset", load_dataset)
    return asked


def test_columns_are_renamed(hub: list[tuple]) -> None:
    found = load_data("birds")
    assert found["train"].column_names == ["image", "label"]
    assert found["test"]["label"][:] == [0, 1, 0]
    assert hub == [("someone/birds", None, "train"), ("someone/birds", None, "validation")]
    load_data("birds")
    assert len(hub) == 2  # once a process


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ("rows = 3", "rows = 4", "has 3 rows in its split train, not 4"),
        ('"fine_label"', '"label_fine"', "has no column label_fine: it has img, fine_label"),
        ("title", "titel", "the entry birds has a mistake"),
    ],
)
def test_a_dataset_that_differs_from_its_entry_is_reported(
    manifests: Path, hub: list[tuple], was: str, becomes: str, message: str
) -> None:
    (manifests / "some.toml").write_text(MANIFEST.replace(was, becomes))
    with pytest.raises(LoLDUError, match=message):
        load_data("birds")


def test_a_missing_dataset_gives_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'someone/birds' on the Hub\nlong traceback")

    monkeypatch.setattr(data.datasets, "load_dataset", offline)
    with pytest.raises(LoLDUError, match=r"birds \(someone/birds.*connect to the") as error:
        load_data("birds")
    assert "\n" not in str(error.value)


def test_unknown_and_duplicate_names_are_reported(manifests: Path) -> None:
    with pytest.raises(LoLDUError, match=r"No manifest.*perhaps you meant birds"):
        entry("brids")
    (manifests / "more.toml").write_text(MANIFEST)
    entries.cache_clear()
    with pytest.raises(LoLDUError, match="second entry birds"):
        entries()


def test_a_digest_depends_on_the_content_alone() -> None:
    def made(labels: list[int]) -> datasets.DatasetDict:
        return datasets.DatasetDict(train=datasets.Dataset.from_dict({"label": labels}))

    assert digest(made([1, 2])) == digest(made([1, 2]))
    assert digest(made([1, 2])) != digest(made([2, 1]))
    chosen = datasets.DatasetDict(train=made([5, 1, 9, 2])["train"].select([1, 3]))
    assert digest(chosen) == digest(made([1, 2]))
