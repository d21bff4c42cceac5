import json
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from benchmarks import floor, train_gpu
from benchmarks.train_gpu import Options, commands, concepts_per_minute, main, prepare, summary
from benchmarks.watched import Command, Watched, watch
from trainer.options.concepts import concept_configs
from trainer.options.preset import parse

# Says on its progress bar what diffusers' script says, and takes its flags without a look at them.
SCRIPT = """
import sys, time
from tqdm import tqdm
steps = int(sys.argv[sys.argv.index("--max_train_steps") + 1])
for step in tqdm(range(9), desc="Loading"):
    pass
before = bytearray(100 * 2**20)
for step in tqdm(range(steps), desc="Steps"):
    time.sleep(0.05)
time.sleep(0.5)
after = bytearray(400 * 2**20)
time.sleep(0.5)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train_dreambooth_lora.py"
    path.write_text(SCRIPT)
    return path


def seen(seconds: list[float], peak: float) -> list[Watched]:
    return [Watched("in words", each, {"resident": peak}) for each in seconds]


def test_commands_are_valid_for_their_programs(tmp_path: Path, script: Path) -> None:
    options = Options(
        size="smallest", diffusers_script=script, also=("rank=full",), concepts=2, steps=30,
        warmup=10, diffusers_flags=("rank=32",), device="cpu",
    )  # fmt: skip
    prepare(options, tmp_path)
    made = commands(options, tmp_path)
    assert [*made] == ["floor", "trainer", "trainer rank=full", "concepts at once", "diffusers"]
    one, full, many = (
        parse(made[name].arguments) for name in ("trainer", "trainer rank=full", "concepts at once")
    )
    assert (one.adapter.rank, full.adapter.rank) == (32, "full")
    assert one.optimization.max_train_steps == 40
    configs = concept_configs(many)
    assert [own.instance.instance_prompt for own in configs.values()] == ["a photo of sks dog"] * 2
    assert all(own.instance.instance_data_dir == tmp_path / "pictures" for own in configs.values())
    taken = tyro.cli(floor.Options, args=made["floor"].arguments, use_underscores=True)
    assert (taken.max_train_steps, taken.dtype, taken.capture) == (40, "float32", False)
    assert made["diffusers"].arguments[-1] == "--rank=32"
    on_gpu = commands(replace(options, device="cuda"), tmp_path)["floor"].arguments
    assert on_gpu[-4:] == ["--dtype", "float16", "--compile", "--capture"]


def test_ratios_are_taken_within_each_repetition() -> None:
    runs = {
        "floor": seen([1.0, 4.0], 100.0),
        "trainer": seen([2.0, 5.0], 150.0),
        "concepts at once": seen([4.0, 8.0], 200.0),
        "diffusers": seen([6.0, 20.0], 300.0),
    }
    ours = summary("trainer", runs)
    assert ours["times_as_fast_as"]["diffusers"] == {"median": 3.5, "min": 3.0, "max": 4.0}
    assert ours["times_as_fast_as"]["floor"] == {"median": 0.65, "min": 0.5, "max": 0.8}
    assert ours["times_the_memory_of"] == {
        "floor": {"resident": 1.5},
        "diffusers": {"resident": 0.5},
    }
    concepts = concepts_per_minute(runs, 8)
    assert concepts["times_as_many"] == {"median": 4.5, "min": 4.0, "max": 5.0}
    assert concepts["at_once"]["max"] == 60 * 8 / (1000 * 4)
    assert concepts["one_by_one"]["max"] == 60 / (1000 * 2)


def test_memory_counts_until_the_last_step_is_done(script: Path) -> None:
    command = Command("it", str(script), ["--max_train_steps", "9"], "Steps")
    watched = watch(command, 9, 2)
    assert watched.seconds_per_step > 0
    assert 100 < watched.peak_mib["resident"] < 400


def test_a_failed_command_is_reported_with_its_last_line(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("raise OSError('no room left')")
    with pytest.raises(SystemExit, match=r"^it did not take 9 steps; .*: OSError: no room left$"):
        watch(Command("it", str(script), [], "Steps"), 9, 2)


def test_a_missing_script_gives_one_clear_error() -> None:
    with pytest.raises(SystemExit, match=r"nowhere.py is not a file: take examples/dreambooth"):
        main(["--size", "smallest", "--diffusers_script", "nowhere.py"])


def test_the_record_is_written_without_running_the_commands(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(command: Command, steps: int, warmup: int) -> Watched:
        assert (steps, warmup) == (3, 1)
        return Watched(command.what, 0.5, {"resident": 100.0})

    monkeypatch.setattr(train_gpu, "watch", watched)
    check_the_record(tmp_path / "train_gpu.json", script, profile=0)


@pytest.mark.slow
def test_the_record_has_speed_and_memory_of_every_command(tmp_path: Path, script: Path) -> None:
    check_the_record(tmp_path / "train_gpu.json", script, profile=1)


def check_the_record(output: Path, script: Path, *, profile: int) -> None:
    flags = ["--size", "smallest", "--steps", "2", "--warmup", "1", "--repetitions", "1"]
    flags += ["--concepts", "2", "--profile", str(profile), "--diffusers_script", str(script)]
    main([*flags, "--device", "cpu", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [*result["commands"]] == ["floor", "trainer", "concepts at once", "diffusers"]
    for command in result["commands"].values():
        assert command["steps_per_second"]["median"] > 0
        assert command["peak_mib"]["resident"] > 0
    assert result["commands"]["floor"]["times_as_fast_as"]["floor"]["median"] == 1
    assert result["concepts_per_minute"]["concepts"] == 2
    assert len(result["diffusers_script"]["sha256"]) == 64
    assert bool(result["profile"]) == bool(profile)
    if profile:
        assert result["profile"]["kernels"]
