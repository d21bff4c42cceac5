"""Pushing, with the hub's library mocked at its boundary: its client and its card validation."""

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
from huggingface_hub import HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from loldu import read_concept
from trainer.__main__ import run
from trainer.results import hub

SHORT = ["--max_train_steps", "1", "--checkpointing_steps", "1"]
LORA = "pytorch_lora_weights.safetensors"


def refusal(message: str) -> HfHubHTTPError:
    return HfHubHTTPError("403 Forbidden", response=MagicMock(), server_message=message)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Return a mocked hub with the user `ann` and no repository."""
    api = create_autospec(HfApi, instance=True)
    api.whoami.return_value = {"name": "ann"}
    api.create_repo.side_effect = lambda name, **_: RepoUrl(f"https://huggingface.co/{name}")
    api.model_info.return_value = SimpleNamespace(private=False, siblings=[])
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(ModelCard, "validate", create_autospec(ModelCard.validate))
    return api


@pytest.fixture
def push_flags(flags: list[str]) -> list[str]:
    return [*flags, *SHORT, "--push_to_hub"]


def pushed(api: MagicMock) -> dict[str, Any]:
    (_, operations), _ = api.create_commit.call_args
    return {operation.path_in_repo: operation.path_or_fileobj for operation in operations}


def test_only_the_result_is_pushed(
    api: MagicMock, push_flags: list[str], tmp_path: Path, pictures: Path
) -> None:
    prior = ["--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "2"]
    assert run([*push_flags, *prior, "--hub_model_id", "club/dog"]) == 0
    assert api.create_commit.call_args.args[0] == "club/dog"
    files = pushed(api)
    assert set(files) == {
        *("README.md", "concept.safetensors", LORA, "config.toml", "metrics.jsonl"),
        *("samples/0-base.png", "samples/0-concept.png"),
    }
    for name, content in files.items():
        if name != "config.toml":
            assert Path(content) == tmp_path / "run" / name
            assert Path(content).is_file()
    config = tomllib.loads(files["config.toml"].decode())
    assert config["adapter"]["rank"] == 4
    assert str(tmp_path) not in files["config.toml"].decode()
    assert str(pictures) in (tmp_path / "run" / "config.toml").read_text()
    assert 'load_lora_weights("club/dog")' in (tmp_path / "run" / "README.md").read_text()


def test_a_result_that_is_a_folder_is_pushed_file_by_file(
    api: MagicMock, push_flags: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "ia3.json"
    config.write_text('{"peft_type": "IA3"}')
    more = ["--method", "peft", "--adapter_config", str(config), "--no_sample_at_end"]
    assert run([*push_flags, *more]) == 0
    files = {f"peft/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert {name for name in pushed(api) if name.startswith("peft")} == files
    card = (tmp_path / "run" / "README.md").read_text()
    assert 'from_pretrained(pipeline.unet, "ann/run", subfolder="peft")' in card


def test_nothing_is_pushed_by_default(api: MagicMock, flags: list[str], tmp_path: Path) -> None:
    assert run([*flags, *SHORT, "--no_sample_at_end"]) == 0
    assert api.mock_calls == []


def test_the_repository_is_named_after_the_output_dir(
    api: MagicMock, push_flags: list[str]
) -> None:
    api.model_info.return_value = SimpleNamespace(private=True, siblings=None)
    assert run([*push_flags, "--hub_private", "--no_sample_at_end"]) == 0
    api.create_repo.assert_called_once_with("ann/run", private=True, exist_ok=True)
    assert api.create_commit.call_args.args[0] == "ann/run"


def test_the_card_is_checked_before_training(
    api: MagicMock, push_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ModelCard.validate.side_effect = ValueError('"license" must be one of [...]')
    assert run([*push_flags, "--license", "mine"]) == 2
    assert 'cannot use the repository ann/run ("license" must be' in capsys.readouterr().err
    (card,), _ = ModelCard.validate.call_args
    assert card.data.license == "mine"
    api.create_repo.assert_not_called()


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("whoami", LocalTokenNotFoundError("Token is required"), "run `hf auth login`, or set"),
        ("whoami", HTTPError("no route to host"), "(no route to host); check"),
        ("create_repo", refusal("You may not write.\nAsk."), "ann/run (You may not write); check"),
        ("create_repo", ValueError("Repo id must be short"), "(Repo id must be short); check"),
    ],
)
def test_an_error_of_the_hub_comes_before_training(
    method: str,
    error: Exception,
    message: str,
    api: MagicMock,
    push_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    getattr(api, method).side_effect = error
    assert run(push_flags) == 2
    error_text = capsys.readouterr().err
    assert message in error_text
    assert error_text.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_repository_with_files_is_not_overwritten(
    api: MagicMock, push_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [".gitattributes", "model.safetensors"]
    siblings = [SimpleNamespace(rfilename=name) for name in names]
    api.model_info.return_value = SimpleNamespace(private=False, siblings=siblings)
    assert run(push_flags) == 2
    assert "ann/run already has files (model.safetensors); name another" in capsys.readouterr().err
    assert run([*push_flags, "--overwrite", "--no_sample_at_end"]) == 0
    api.create_commit.assert_called_once()


def test_a_public_repository_is_refused_for_a_private_push(
    api: MagicMock, push_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*push_flags, "--hub_private"]) == 2
    assert "the repository ann/run is public; make it private" in capsys.readouterr().err


def test_a_failed_push_keeps_the_result_and_says_how_to_retry(
    api: MagicMock, push_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.create_commit.side_effect = refusal("Storage is full.")
    assert run([*push_flags, "--no_sample_at_end"]) == 2
    folder = tmp_path / "run"
    files = ["README.md", "concept.safetensors", LORA, "metrics.jsonl"]
    assert all((folder / name).is_file() for name in files)
    error_text = capsys.readouterr().err.splitlines()[-1]
    include = " ".join(f"--include {name}" for name in files)
    assert error_text.endswith(
        "the hub refused it (Storage is full); push it by hand: "
        f"hf upload ann/run {folder} . {include}"
    )


def test_every_concept_has_a_repository(
    api: MagicMock, push_flags: list[str], pictures: Path, tmp_path: Path
) -> None:
    toml = tmp_path / "concepts.toml"
    toml.write_text(
        f"[dog]\ninstance_data_dir = '{pictures}'\ninstance_prompt = 'sks dog'\n"
        f"[toy]\ninstance_data_dir = '{pictures}'\ninstance_prompt = 'a zwx'\ntoken = 'zwx'\n"
    )
    index = push_flags.index("--instance_data_dir")
    flags = [*push_flags[:index], *push_flags[index + 4 :], "--concepts", str(toml)]
    api.create_commit.side_effect = [refusal("Try again."), None]
    assert run([*flags, "--hub_model_id", "mine", "--no_sample_at_end"]) == 2
    assert [call.args[0] for call in api.create_commit.call_args_list] == [
        "ann/mine-dog",
        "ann/mine-toy",
    ]
    assert Path(pushed(api)["README.md"]) == tmp_path / "run" / "concepts" / "toy" / "README.md"
    concept = read_concept(Path(pushed(api)["concept.safetensors"]))
    assert concept.metadata["token"] == "zwx"
    assert "class_name" not in concept.metadata


def test_a_whole_pipeline_is_not_pushed(
    api: MagicMock, push_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*push_flags, "--method", "dreambooth"]) == 2
    assert "--push_to_hub is for small results" in capsys.readouterr().err
    assert api.mock_calls == []
