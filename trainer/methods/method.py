"""The interface of a training method; training adds what it trains, and saves its result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import DiffusionPipeline
from torch import nn

from loldu.base.families import family_of
from loldu.errors import LoLDUError
from trainer.methods import MethodName
from trainer.methods.trained import Trainable, Trained
from trainer.options.config import AdapterConfig, Config


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training method: `--method NAME` is `METHOD` of `trainer/methods/NAME.py`.

    Attributes:
        title: Name on the model card, in Markdown.
        file_name: File or folder of the result in the output folder.
        about: Description of that file, for the model card.
        add: Adds what is trained to the frozen pipeline, in fp32, for concepts of these names.
            Returns trainables by component of the pipeline, the network's first.
        save: Writes the result of a concept, with its metadata, to a path in a folder of drafts.
        makes_concept: Whether the result is a concept file, which can also become a LoRA.
        is_adapter: Whether it has a rank and target modules.
        trains_base: Whether it overwrites the base's own weights.
    """

    title: str
    file_name: str
    about: str
    add: Callable[[DiffusionPipeline, Config, Sequence[str]], dict[str, Trainable]]
    save: Callable[[Path, DiffusionPipeline, Trained, str, dict[str, Any]], None]
    makes_concept: bool = False
    is_adapter: bool = False
    trains_base: bool = False


def method_named(name: str) -> Method:
    """Return the method that `--method` names; its file is imported only now."""
    return import_module(f"trainer.methods.{name}").METHOD


def all_methods() -> list[Method]:
    """Return every method."""
    return [method_named(name) for name in get_args(MethodName)]


def add_trainables(
    pipeline: DiffusionPipeline, configs: Mapping[str, Config], words: Mapping[str, Trainable]
) -> Trained:
    """Add what the method trains to the frozen pipeline.

    Trained parameters are fp32 in every precision: in bf16 an AdamW step of 5e-4 is smaller than
    the spacing of the numbers.

    Args:
        pipeline: The base, in its compute dtype.
        configs: Options of every concept; only their pictures and prompts differ.
        words: New words, as `learn_words` returns them.

    Raises:
        LoLDUError: If no layer matches, or the adapter refuses its options.
    """
    config = next(iter(configs.values()))
    torch.manual_seed(config.optimization.seed)  # LoRA's A is random
    parts = method_named(config.adapter.method).add(pipeline, config, [*configs])
    return Trained((*configs,), {**parts, **words})


def save_result(
    pipeline: DiffusionPipeline,
    trained: Trained,
    concept: str,
    config: Config,
    metadata: dict[str, Any],
    folder: Path,
) -> None:
    """Write a concept's result, and its word if it has one, into an empty folder.

    Raises:
        LoLDUError: If what was trained cannot be saved.
    """
    method = method_named(config.adapter.method)
    for part in trained.parts.values():
        part.save_beside(folder, concept, config)
    method.save(folder / method.file_name, pipeline, trained, concept, metadata)


def target_modules(
    pipeline: DiffusionPipeline, adapter: AdapterConfig
) -> dict[str, tuple[str, ...]]:
    """Return the layers to adapt, by component: the network's, and text encoders' if trained.

    Raises:
        LoLDUError: If the text encoders of this base are never trained.
    """
    family, chosen = family_of(pipeline), adapter.target_modules
    is_default = chosen in ((), AdapterConfig().target_modules)
    targets = {family.network: family.network_targets(pipeline) if is_default else chosen}
    if adapter.train_text_encoder:
        targets |= family.text_targets(pipeline)
    return targets


def add_adapters(
    pipeline: DiffusionPipeline,
    adapter: AdapterConfig,
    make: Callable[[Any, list[str], int], Trainable],
) -> dict[str, Trainable]:
    """Return an adapter on every target component, which `make` adds to a model.

    Raises:
        LoLDUError: If no layer matches, or the adapter refuses its options.
    """
    parts: dict[str, Trainable] = {}
    for component, targets in target_modules(pipeline, adapter).items():
        model = getattr(pipeline, component)
        rank = _rank(model, targets, adapter)
        try:
            parts[component] = make(model, list(targets), rank)
        except ValueError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise LoLDUError(f"The {adapter.method} adapter cannot be added: {reason}.") from error
    return parts


def _rank(model: nn.Module, targets: tuple[str, ...], adapter: AdapterConfig) -> int:
    """Return the rank of an adapter; `full` is the rank of the largest target layer.

    PEFT clamps it on smaller layers. The scale alpha / rank multiplies the diagonal's steps, so
    the rank must be the same on all layers.
    """
    shapes: list[torch.Size] = [
        module.weight.shape  # pyright: ignore[reportAssignmentType]  a module's attributes are untyped
        for name, module in model.named_modules()
        if hasattr(module, "weight")
        and any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    if not shapes:
        raise LoLDUError(
            f"--target_modules {' '.join(targets)} matches no layer of the "
            f"{type(model).__name__}; leave it out to adapt its attention layers."
        )
    if adapter.rank != "full":
        return adapter.rank
    return max(min(shape[0], shape[1:].numel()) for shape in shapes)
