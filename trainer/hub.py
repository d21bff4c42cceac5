"""The result on the Hugging Face hub: asked about first, pushed last."""

import shlex
from collections.abc import Sequence

import tomli_w
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from trainer.card import card_data
from trainer.checkpoint import CONFIG
from trainer.config import Config
from trainer.errors import TrainerError
from trainer.metadata import public_sections

_FAILURES = (HTTPError, OSError, ValueError, RuntimeError)
"""What the hub's library raises: refusals, no connection, bad names, its storage's own."""


def open_repository(config: Config) -> str | None:
    """Make the repository that --push_to_hub asks for, so that what is wrong shows before training.

    Returns:
        Its full name; none without --push_to_hub.

    Raises:
        TrainerError: There is no login, the hub refuses the name, the card or the right to write,
            or the repository has files already, or is public although --hub_private is given.
    """
    result = config.result
    if not result.push_to_hub:
        return None
    api = HfApi()
    name = result.hub_model_id or config.run.output_dir.resolve().name
    try:
        user = api.whoami()["name"]
        name = name if "/" in name else f"{user}/{name}"
        ModelCard(f"---\n{card_data(config).to_yaml()}\n---\n").validate()
        name = api.create_repo(name, private=result.hub_private or None, exist_ok=True).repo_id
        repository = api.model_info(name)
    except LocalTokenNotFoundError as error:
        raise TrainerError(
            "--push_to_hub needs a login to the Hugging Face hub: run `hf auth login`, or set "
            "HF_TOKEN."
        ) from error
    except _FAILURES as error:
        raise TrainerError(
            f"--push_to_hub cannot use the repository {name} ({_reason(error)}); check "
            "--hub_model_id, --license, the connection and that your token may write."
        ) from error
    if result.hub_private and not repository.private:
        raise TrainerError(
            f"--hub_private is given, but the repository {name} is public; make it private on the "
            "hub, or name another with --hub_model_id."
        )
    files = [file.rfilename for file in repository.siblings or () if file.rfilename[0] != "."]
    if files and not config.run.overwrite:
        raise TrainerError(
            f"The repository {name} has files already ({', '.join(files[:3])}); name another with "
            "--hub_model_id, or replace them with --overwrite."
        )
    return name


def push(config: Config, repository: str, names: Sequence[str]) -> None:
    """Put files of the output_dir into the repository in one commit.

    The options go without the places of a person's files.

    Raises:
        TrainerError: The hub does not take them; the message has the command to try again.
    """
    folder = config.run.output_dir
    operations = [CommitOperationAdd(name, folder / name) for name in names]
    options = tomli_w.dumps(public_sections(config)).encode()
    operations.append(CommitOperationAdd(CONFIG, options))
    try:
        HfApi().create_commit(repository, operations, commit_message="Add the concept")
    except _FAILURES as error:
        include = " ".join(f"--include {shlex.quote(name)}" for name in names)
        raise TrainerError(
            f"The result is in {folder}, but the hub did not take it ({_reason(error)}); push it "
            f"by hand: hf upload {repository} {shlex.quote(str(folder))} . {include}"
        ) from error


def _reason(error: Exception) -> str:
    told = getattr(error, "server_message", None) if isinstance(error, HfHubHTTPError) else None
    return (told or str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
