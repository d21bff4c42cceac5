"""Any method of PEFT that works on target modules: IA3, VeRA, OFT, LoKr, LoHa, DoRA and others.

`--adapter_config` names a JSON file with the options of PEFT's own config class; the result is the
folder that PEFT's `save_pretrained` writes.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn

from loldu.base.families import family_of
from loldu.errors import LoLDUError, hint
from loldu.pictures.captions import read_json, read_text
from trainer.methods.method import Method
from trainer.methods.trained import State, Trainable, Trained
from trainer.options.config import Config

PEFT = "peft"
_NEED_MORE = ("ADALORA",)
"""Methods that want to be called in every step."""


def add(
    pipeline: DiffusionPipeline, config: Config, concepts: Sequence[str]
) -> dict[str, Trainable]:
    """Add the adapter that --adapter_config describes to the network, for one concept.

    Raises:
        LoLDUError: If the file describes no adapter, or none that can be trained here.
    """
    path = config.adapter.adapter_config
    assert path is not None  # the options are checked
    family = family_of(pipeline)
    own = read_adapter_config(path, list(family.network_targets(pipeline)))
    try:
        return {family.network: Adapter(getattr(pipeline, family.network), own, *concepts)}
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise LoLDUError(f"The adapter of {path} cannot be added: {reason}.") from error


def read_adapter_config(path: Path, target_modules: list[str]) -> PeftConfig:
    """Return PEFT's config of a JSON file; without targets it gets those given.

    Raises:
        LoLDUError: If it is not such a file, or has what cannot be trained here.
    """
    try:
        values: Any = read_json(read_text(path), f"--adapter_config {path}")
    except OSError as error:
        raise LoLDUError(f"--adapter_config {path} cannot be read: {error.strerror}.") from error
    if not isinstance(values, dict) or not isinstance(values.get("peft_type"), str):
        raise LoLDUError(
            f'--adapter_config {path} has no peft_type; begin with {{"peft_type": "IA3"}}, or '
            "another method of PEFT."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions and defaults, for other uses
            own: Any = PeftConfig.from_peft_type(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise LoLDUError(
            f"--adapter_config {path} is no config of PEFT's {values['peft_type']}: {error}."
        ) from error
    known = {each.name for each in fields(own)}
    if strange := sorted(values.keys() - known):  # PEFT would only warn
        raise LoLDUError(
            f"--adapter_config {path}: PEFT's {values['peft_type']} has no {strange[0]}; "
            f"{hint(strange[0], known, 'correct or remove it')}."
        )
    if own.is_prompt_learning or values["peft_type"] in _NEED_MORE:
        raise LoLDUError(
            f"{path}: PEFT's {values['peft_type']} is not trained here, because it does not only "
            "change the target modules of a network; use another method, such as LORA."
        )
    if getattr(own, "modules_to_save", None) or getattr(own, "bias", "none") != "none":
        raise LoLDUError(
            f"{path} trains weights of the base too (modules_to_save or bias); leave that out."
        )
    if not own.target_modules:
        own.target_modules = target_modules
    if getattr(own, "feedforward_modules", ()) is None:  # IA3 would look for a language model's
        own.feedforward_modules = []
    own.inference_mode, own.base_model_name_or_path = False, None
    return own


def save(path: Path, pipeline: DiffusionPipeline, trained: Trained, *_: object) -> None:
    """Write the folder of PEFT."""
    (adapter,) = (part for part in trained.parts.values() if isinstance(part, Adapter))
    adapter.save(path)


class Adapter(Trainable):
    """An adapter of PEFT on one model, for one concept."""

    def __init__(self, model: nn.Module, config: PeftConfig, concept: str) -> None:
        """Add the adapter to a model, in place.

        Raises:
            ValueError: If PEFT refuses the options, or no layer matches.
        """
        self._concept = concept
        self._adapted: Any = PeftModel(model, config, adapter_name=concept)  # pyright: ignore[reportArgumentType]
        for parameter in self.parameters(concept):
            parameter.data = parameter.data.float()

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """Return all trained parameters."""
        return [parameter for parameter in self._adapted.parameters() if parameter.requires_grad]

    def state_dict(self) -> State:
        """Return the state as PEFT saves it."""
        return get_peft_model_state_dict(self._adapted, adapter_name=self._concept)

    def load_state_dict(self, state: State) -> None:
        """Load the state."""
        set_peft_model_state_dict(self._adapted, state, adapter_name=self._concept)

    def save(self, path: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors into a folder."""
        self._adapted.save_pretrained(path, selected_adapters=[self._concept])
        (path / "README.md").unlink(missing_ok=True)  # PEFT's card; the run has its own

    def off(self) -> AbstractContextManager[None]:
        """Inside the block, the model is the base's."""
        return self._adapted.disable_adapter()


METHOD = Method(
    title="[PEFT](https://huggingface.co/docs/peft)",
    file_name=PEFT,
    about="the adapter in PEFT's own format, for PEFT on this base",
    add=add,
    save=save,
)
