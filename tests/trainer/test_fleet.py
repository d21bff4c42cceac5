"""Fleets: a table of concepts is cut into passes, which workers take over from each other."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loldu import read_concept
from loldu.errors import LoLDUError
from loldu.files import read_toml
from tests.ray_cluster import PATIENCE_S, ROOT, cluster
from trainer import train_dreambooth_loldu
from trainer.__main__ import run
from trainer.fleet import Passes, _halved, train_pass
from trainer.options.concepts import concept_configs
from trainer.options.config import Config
from trainer.options.preset import parse
from trainer.training.checkpoint import checkpoints

MakePasses = Callable[..., Passes]
NAMES = [f"toy{number}" for number in range(6)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write a table of six concepts of one picture each."""
    lines: list[str] = []
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        noise = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name / "0.png")
        lines.append(f"[{name}]\ninstance_data_dir = '{name}'\ninstance_prompt = 'a sks toy'\n")
    path = tmp_path / "concepts.toml"
    path.write_text("".join(lines))
    return path


@pytest.fixture
def fleet_flags(flags: list[str], table: Path, tmp_path: Path) -> list[str]:
    """Return the command line of a fleet, without --on."""
    for name in ("--instance_data_dir", "--instance_prompt", "--output_dir"):
        index = flags.index(name)
        flags = flags[:index] + flags[index + 2 :]
    more = ("--concepts", str(table), "--no_sample_at_end", "--lora_file", "no")
    return [*flags, *more, "--output_dir", str(tmp_path / "fleet")]


@pytest.fixture
def make_passes(fleet_flags: list[str]) -> MakePasses:
    def make(*more: str, size: int = 4) -> Passes:
        config = parse([*fleet_flags, "--on", "ray", "--concepts_a_pass", str(size), *more])
        return Passes(config, concept_configs(config))

    return make


def names_of(passes: Passes) -> list[list[str]]:
    return [passes.concepts(number) for number in passes.open()]


def test_a_concept_stays_in_its_pass(make_passes: MakePasses, table: Path, tmp_path: Path) -> None:
    passes = make_passes()
    assert names_of(passes) == [NAMES[:4], NAMES[4:]]
    options = passes.open()["000001"]
    assert options.run.output_dir == tmp_path / "fleet" / "passes" / "000001"
    written = read_toml(options.instance.concepts or Path(), "The table")
    assert written["toy4"]["instance_data_dir"] == str(tmp_path / "toy4")
    assert [*concept_configs(options)] == NAMES[4:]
    with pytest.raises(LoLDUError, match="holds another run; continue it with --resume latest"):
        make_passes()
    table.write_text(table.read_text().replace("[toy0]", "[new]"))
    with pytest.raises(LoLDUError, match=r"concepts\.toml lacks the concept toy0, which is in"):
        make_passes("--resume", "latest")
    text = table.read_text().replace("[new]", "[toy0]")
    table.write_text(f"{text}[new]\ninstance_data_dir = 'toy0'\ninstance_prompt = 'a sks toy'\n")
    again = make_passes("--resume", "latest", size=1)
    assert names_of(again) == [NAMES[:4], NAMES[4:], ["new"]]
    (tmp_path / "fleet" / "concepts").mkdir()
    for name in NAMES[:4]:
        (tmp_path / "fleet" / "concepts" / f"{name}.safetensors").touch()
    assert names_of(again) == [NAMES[4:], ["new"]]


def test_passes_that_do_not_fit_are_halved(make_passes: MakePasses, tmp_path: Path) -> None:
    passes = make_passes(size=3)
    waiting = passes.open()
    waiting.pop("000000")
    halves = _halved(passes, "000000", queue := deque(waiting.items()))
    assert not queue
    assert [passes.concepts(number) for number, _ in halves] == [
        NAMES[:1],
        NAMES[1:3],
        NAMES[3:4],
        NAMES[4:],
    ]
    assert sorted(name for own in names_of(make_passes("--resume", "latest")) for name in own) == (
        NAMES
    )
    assert not (tmp_path / "fleet" / "passes" / "000000").exists()


def test_a_worker_reports_mistakes_and_a_small_memory(
    make_passes: MakePasses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_passes().open()["000001"]
    (tmp_path / "toy5" / "0.png").write_bytes(b"no picture")
    outcome = train_pass(options, str(tmp_path / "fleet"))
    assert "toy5" in outcome.error
    assert not outcome.out_of_memory

    def too_large(config: Config) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_dreambooth_loldu, "main", too_large)
    outcome = train_pass(options, str(tmp_path / "fleet"))
    assert outcome.out_of_memory
    assert outcome.error.startswith("Out of memory")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--overwrite"], "--overwrite does not go with --on: name another --output_dir."),
        (["--resume", "somewhere"], "give --resume latest"),
        (["--on", "slurm"], "--on slurm is no place to run: give ray, or ray://HOST:PORT."),
        (["--concepts_a_pass", "0"], "--concepts_a_pass is 0; it must be at least 1."),
    ],
)
def test_an_option_that_does_not_go_with_a_fleet(
    more: list[str], sentence: str, fleet_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*fleet_flags, "--on", "ray", *more]) == 2
    assert sentence in capsys.readouterr().err


def test_a_fleet_needs_a_table(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*flags, "--on", "ray"]) == 2
    assert "--on does nothing without --concepts" in capsys.readouterr().err
    assert run([*flags, "--concepts_a_pass", "3"]) == 2
    assert "--concepts_a_pass does nothing without --on" in capsys.readouterr().err


def test_the_script_of_accelerate_trains_no_fleet(fleet_flags: list[str]) -> None:
    with pytest.raises(LoLDUError, match="use loldu-train, not accelerate launch"):
        train_dreambooth_loldu.main(parse([*fleet_flags, "--on", "ray"]))


# ------------------------------------------------------------------------------ on a cluster here


def deltas(path: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(path).layers])


@pytest.fixture(scope="module")
def joined() -> Iterator[None]:
    """Be in a cluster; a fleet that is trained by this process stays in it."""
    pytest.importorskip("ray", reason="needs ray: make test-ray")
    with cluster():
        yield


@pytest.mark.ray
def test_killed_workers_cost_their_last_steps_and_change_nothing(
    joined: None,
    fleet_flags: list[str],
    tmp_path: Path,
) -> None:
    """Two passes of three; a worker of each dies after a checkpoint, and nothing differs."""
    steps = ["--max_train_steps", "60", "--checkpointing_steps", "10"]
    killed: dict[str, int] = {}
    ended = threading.Event()

    def kill() -> None:
        while not ended.is_set() and len(killed) < 2:
            for folder in (tmp_path / "fleet" / "passes").glob("[0-9]*/"):
                lock = folder / ".loldu" / "lock"
                if folder.name not in killed and checkpoints(folder) and lock.is_file():
                    killed[folder.name] = checkpoint_of(folder)
                    os.kill(int(lock.read_text()), signal.SIGKILL)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert run([*fleet_flags, *steps, "--on", "ray", "--concepts_a_pass", "3"]) == 0
    finally:
        ended.set()
        killer.join()
    assert sorted(killed) == ["000000", "000001"]
    assert all(0 < step < 60 for step in killed.values())
    fleet = tmp_path / "fleet"
    assert sorted(path.stem for path in (fleet / "concepts").iterdir()) == NAMES
    for number, names in (("000000", NAMES[:3]), ("000001", NAMES[3:])):
        table = fleet / "passes" / f"{number}.toml"
        alone = tmp_path / number
        where = ["--concepts", str(table), "--output_dir", str(alone)]
        subprocess.run(
            [sys.executable, "-m", "trainer", *fleet_flags, *steps, *where],
            check=True,
            env={
                **os.environ,
                "PYTHONPATH": ROOT,
                "OMP_NUM_THREADS": "1",
            },
        )
        for name in names:
            ours = deltas(fleet / "concepts" / f"{name}.safetensors")
            theirs = deltas(alone / "concepts" / name / "concept.safetensors")
            assert ours.abs().max() > 0
            assert torch.equal(ours, theirs)
    assert run([*fleet_flags, *steps, "--on", "ray", "--resume", "latest"]) == 0


def checkpoint_of(folder: Path) -> int:
    return int(checkpoints(folder)[-1].name.rpartition("-")[2])


@pytest.mark.ray
def test_a_killed_driver_goes_on(
    joined: None,
    fleet_flags: list[str],
    tmp_path: Path,
) -> None:
    """The second start skips the finished pass, and continues the other from its checkpoint."""
    more = ["--max_train_steps", "200", "--checkpointing_steps", "10", "--concepts_a_pass", "3"]
    argv = [*fleet_flags, *more, "--on", "ray"]
    fleet, environment = tmp_path / "fleet", {**os.environ, "PYTHONPATH": ROOT}
    driver = subprocess.Popen([sys.executable, "-m", "trainer", *argv], env=environment)
    begun = time.monotonic()
    while not any(map(checkpoints, (fleet / "passes").glob("[0-9]*/"))):
        assert driver.poll() is None
        assert time.monotonic() < begun + PATIENCE_S
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    assert run([*argv, "--resume", "latest"]) == 0
    assert sorted(path.stem for path in (fleet / "concepts").iterdir()) == NAMES
    assert (
        len({hashlib.sha256(y.read_bytes()).digest() for y in (fleet / "concepts").iterdir()}) == 6
    )
