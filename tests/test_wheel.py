"""The wheel: its content, and its commands outside of the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PACKAGES = ("loldu", "trainer", "eval", "webui", "pocket", "experiments")
COMMANDS = ("loldu", *(f"loldu-{x}" for x in ("train", "eval", "studio", "serve", "experiments")))

# Python runs this first: it hides the checkout, and the packages that only an extra brings.
ONLY_WHAT_IS_INSTALLED = """
import os
import sys
from importlib.machinery import PathFinder

sys.path[:] = [folder for folder in sys.path if not os.path.exists(f"{folder}/pyproject.toml")]
EXTRAS = {
    "datasets", "lm_eval", "scipy", "sklearn",
    "gradio", "open_clip", "timm", "tensorboard", "bitsandbytes", "ray",
}

class WithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-build-isolation", "--wheel-dir", folder, CHECKOUT)
    (file,) = folder.glob("loldu-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    _pip("install", "--target", folder, wheel)
    (folder / "sitecustomize.py").write_text(ONLY_WHAT_IS_INSTALLED)
    return folder


def test_the_wheel_holds_the_packages_and_their_data_but_no_results(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = ["git", "-C", str(CHECKOUT), "ls-files", *PACKAGES, "datasets"]
    tracked = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    tracked = [file for file in tracked if (CHECKOUT / file).is_file()]
    moved = {f"experiments/{file}" if file.startswith("datasets/") else file for file in tracked}
    assert held <= moved
    left_out = moved - held
    assert all(file.startswith(("experiments/", "pocket/")) for file in left_out)
    assert {Path(file).suffix for file in left_out} <= {".json", ".jsonl", ".png"}
    recorded = {file for file in held if file.endswith((".json", ".jsonl"))}
    assert not any("/results/" in file or "/tuning/" in file for file in recorded)
    assert not any(file.endswith(".jsonl") for file in recorded)


def test_every_package_comes_from_the_installed_folder(installed: Path, tmp_path: Path) -> None:
    code = f"import importlib; [print(importlib.import_module(m).__file__) for m in {PACKAGES}]"
    files = _run(sys.executable, "-c", code, installed=installed, folder=tmp_path).split()
    assert len(files) == len(PACKAGES)
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_nothing_comes_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import importlib.util; print(importlib.util.find_spec('benchmarks'))"
    assert _run(sys.executable, "-c", code, installed=installed, folder=tmp_path) == "None\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_works_without_the_extras(command: str, installed: Path, tmp_path: Path) -> None:
    shown = _run(installed / "bin" / command, "--help", installed=installed, folder=tmp_path)
    assert shown.startswith(f"usage: {command} ")


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (["loldu-studio", "--port", "0"], "the package gradio: pip install 'loldu[webui]'."),
        (["loldu-serve"], "the package ray: pip install 'loldu[ray]'."),
        (
            ["loldu-experiments", "run", "vision", "--rows", "lp", "--results", "results"],
            "the package datasets: pip install 'loldu[experiments]'.",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_missing_extra_is_named_in_one_sentence(
    command: list[str], needed: str, installed: Path, tmp_path: Path
) -> None:
    program, *flags = command
    done = _finish(installed / "bin" / program, *flags, installed=installed, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"This command needs {needed}\n"


def test_the_examples_of_the_studio_come_along(installed: Path, tmp_path: Path) -> None:
    code = "from webui.__main__ import StudioOptions; print(StudioOptions().examples)"
    examples = Path(_run(sys.executable, "-c", code, installed=installed, folder=tmp_path).strip())
    assert examples.is_relative_to(installed)
    assert {folder.name for folder in examples.iterdir()} == {
        folder.name for folder in (CHECKOUT / "datasets" / "concepts").iterdir()
    }
    assert len(list(examples.glob("*/01.png"))) == len(list(examples.iterdir()))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_quietly_when_its_pipe_closes(
    command: str, installed: Path, tmp_path: Path
) -> None:
    program = [installed / "bin" / command, "--help"]
    with subprocess.Popen(
        program,
        cwd=tmp_path,
        env=_environment(installed),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_pocket_preset_trains_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    flags = [
        *("--preset", "pocket", "--output_dir", "run"),
        *("--instance_data_dir", "datasets/concepts/dotted_rabbit"),  # as the guide writes it
        *("--instance_prompt", "a photo of a sks toy"),
        *("--max_train_steps", "2", "--lr_warmup_steps", "0", "--train_batch_size", "1"),
        *("--num_class_images", "4", "--num_inference_steps", "2"),
    ]
    _run(installed / "bin" / "loldu-train", *flags, installed=installed, folder=tmp_path)
    file = tmp_path / "run" / "concept.safetensors"
    assert 10_000 < file.stat().st_size < 1_000_000
    output = _run(
        installed / "bin" / "loldu", "inspect", file, installed=installed, folder=tmp_path
    )
    assert "sks" in output


def _pip(command: str, *arguments: object) -> None:
    offline = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    whole = [sys.executable, "-m", "pip", command, *offline, *map(str, arguments)]
    subprocess.run(whole, cwd="/", check=True)


def _run(*command: object, installed: Path, folder: Path) -> str:
    done = _finish(*command, installed=installed, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _finish(*command: object, installed: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=_environment(installed),
        capture_output=True,
        text=True,
        check=False,
    )


def _environment(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
