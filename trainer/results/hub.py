"""Push the result to the Hugging Face hub; its repository is checked before training."""

import logging
import shlex
from collections.abc import Mapping, Sequence

import tomli_w
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from loldu.base.record import CONFIG
from loldu.errors import LoLDUError
from trainer.options.concepts import SINGLE
from trainer.options.config import Config
from trainer.results.card import card_data
from trainer.results.metadata import public_sections

logger = logging.getLogger(__name__)

_FAILURES = (HTTPError, OSError, ValueError, RuntimeError)
"""Errors of the hub's library: refusals, no connection, bad names, storage."""


def open_repositories(configs: Mapping[str, Config]) -> dict[str, str]:
    """Create the repositories for --push_to_hub before training, so that mistakes show early.

    Returns:
        Full name of the repository by concept; empty without --push_to_hub.

    Raises:
        LoLDUError: If there is no login, the hub refuses a name, the card or write access, a
            repository already has files, or it is public although --hub_private is given.
    """
    return {
        concept: _open(config, "" if concept == SINGLE else f"-{concept}")
        for concept, config in configs.items()
        if config.result.push_to_hub
    }


def _open(config: Config, suffix: str) -> str:
    result, api = config.result, HfApi()
    given = result.hub_model_id
    name = f"{given}{suffix}" if given else config.run.output_dir.resolve().name
    try:
        user = api.whoami(cache=True)["name"]
        name = name if "/" in name else f"{user}/{name}"
        ModelCard(f"---\n{card_data(config).to_yaml()}\n---\n").validate()
        name = api.create_repo(name, private=result.hub_private or None, exist_ok=True).repo_id
        repository = api.model_info(name)
    except LocalTokenNotFoundError as error:
        raise LoLDUError(
            "--push_to_hub needs a login to the Hugging Face hub: run `hf auth login`, or set "
            "HF_TOKEN."
        ) from error
    except _FAILURES as error:
        raise LoLDUError(
            f"--push_to_hub cannot use the repository {name} ({_reason(error)}); check "
            "--hub_model_id, --license, the connection and that your token may write."
        ) from error
    if result.hub_private and not repository.private:
        raise LoLDUError(
            f"--hub_private is given, but the repository {name} is public; make it private on the "
            "hub, or name another with --hub_model_id."
        )
    files = [file.rfilename for file in repository.siblings or () if file.rfilename[0] != "."]
    if files and not config.run.overwrite:
        raise LoLDUError(
            f"The repository {name} already has files ({', '.join(files[:3])}); name another with "
            "--hub_model_id, or replace them with --overwrite."
        )
    return name


def push(
    configs: Mapping[str, Config],
    repositories: Mapping[str, str],
    files: Mapping[str, Sequence[str]],
) -> None:
    """Push every concept's files to its repository, in one commit each.

    Raises:
        LoLDUError: If the hub refuses some; the message has the commands to push them later.
    """
    failures: list[str] = []
    for concept, repository in repositories.items():
        try:
            _push(configs[concept], repository, files[concept])
        except LoLDUError as error:
            failures.append(str(error))
    if failures:
        raise LoLDUError("\n".join(failures))


def _push(config: Config, repository: str, names: Sequence[str]) -> None:
    """Push files and options; the options have no local paths."""
    folder = config.run.output_dir
    files = [file for name in names for file in ([*(folder / name).rglob("*")] or [folder / name])]
    names = [file.relative_to(folder).as_posix() for file in files if not file.is_dir()]
    operations = [CommitOperationAdd(name, folder / name) for name in names]
    options = tomli_w.dumps(public_sections(config)).encode()
    operations.append(CommitOperationAdd(CONFIG, options))
    try:
        HfApi().create_commit(repository, operations, commit_message="Add the concept")
    except _FAILURES as error:
        include = " ".join(f"--include {shlex.quote(name)}" for name in names)
        raise LoLDUError(
            f"The result is in {folder}, but the hub refused it ({_reason(error)}); push it "
            f"by hand: hf upload {repository} {shlex.quote(str(folder))} . {include}"
        ) from error
    logger.info("Pushed to https://huggingface.co/%s", repository)


def _reason(error: Exception) -> str:
    message = getattr(error, "server_message", None) if isinstance(error, HfHubHTTPError) else None
    return (message or str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
