"""What no run can work with, told before anything is loaded."""

import logging
import math
from collections.abc import Iterator, Mapping

from loldu.errors import LoLDUError
from loldu.prompts import class_after
from trainer.options.config import (
    AdapterConfig,
    Config,
    InstanceConfig,
    Method,
    OptimizationConfig,
    sections,
)

logger = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Refuse values that cannot work, before anything is loaded.

    Raises:
        LoLDUError: naming the flag and what to do.
    """
    for problem in _problems(config):
        raise LoLDUError(problem)


def check_fit(config: Config, typed: Mapping[str, str]) -> None:
    """Refuse options that the method does not have, and tell of those that a preset has.

    A preset is often used with another method than its own, and a `config.toml` has every option.

    Args:
        config: the options.
        typed: those of the command line, with the flag of each.

    Raises:
        LoLDUError: when one of these is not at its default, and would do nothing.
    """
    method = config.adapter.method
    values = vars(config.instance) | vars(config.adapter) | vars(config.optimization)
    defaults = vars(InstanceConfig()) | vars(AdapterConfig()) | vars(OptimizationConfig())
    unused = [
        option
        for option, methods in _ONLY_FOR.items()
        if method not in methods and values[option] != defaults[option]
    ]
    for option in unused:
        if option in typed:
            *others, last = _ONLY_FOR[option]
            methods = f"{', '.join(others)} and {last}" if others else last
            raise LoLDUError(
                f"{typed[option]} is for {methods}; leave it out with --method {method}."
            )
    for option, needed in _ONLY_WITH.items():
        there = values[needed] or (needed == "placeholder_token" and config.instance.concepts)
        if option in typed and not there and values[option] != defaults[option]:
            raise LoLDUError(
                f"{typed[option]} does nothing without --{needed}: give that too, or leave it out."
            )
    if unused:
        names = ", ".join(f"--{option}" for option in unused)
        logger.info("Of the preset, --method %s does not use %s.", method, names)


def _problems(config: Config) -> Iterator[str]:
    for section in sections(config).values():
        for key, value in section.items():
            if key in _AT_LEAST and not value >= _AT_LEAST[key]:
                yield f"--{key} is {value}; it must be at least {_AT_LEAST[key]}."
            if key in _ABOVE_ZERO and not (value > 0 and math.isfinite(value)):
                yield f"--{key} is {value}; it must be above 0."
    if isinstance(config.adapter.rank, int) and config.adapter.rank < 1:
        yield f"--rank is {config.adapter.rank}; it must be at least 1, or full."
    if config.instance.resolution % 8:
        yield f"--resolution is {config.instance.resolution}; it must be a multiple of 8."
    if not 0 <= config.instance.unmasked_weight <= 1:
        yield f"--unmasked_weight is {config.instance.unmasked_weight}; it must be from 0 to 1."
    if not config.adapter.target_modules:
        yield "--target_modules is empty; name at least one layer, such as to_k."
    yield from _method_problems(config)
    yield from _optimization_problems(config)
    yield from _validation_problems(config)
    prior = config.prior
    if prior.with_prior_preservation and not (prior.class_prompt or prior.class_data_dir):
        yield (
            "--with_prior_preservation needs --class_prompt, such as "
            '"a photo of a dog", to draw class pictures.'
        )
    prompt, token = config.instance.instance_prompt, config.instance.token
    if prompt and token and class_after(prompt, token) is None:
        yield f"--token is {token}, which is not in the --instance_prompt ({prompt})."
    if config.result.push_to_hub and config.adapter.method == "dreambooth":
        yield (
            "--push_to_hub is for small results; leave it out with --method dreambooth and push "
            "the gigabytes of its folder pipeline with `hf upload`."
        )


def _optimization_problems(config: Config) -> Iterator[str]:
    optimization = config.optimization
    decay = optimization.ema_decay
    if decay is not None and not 0 < decay < 1:
        yield f"--ema_decay is {decay}; it must be above 0 and below 1, such as 0.99."
    if optimization.optimizer != "prodigy":
        return
    if optimization.learning_rate < 0.1:
        yield (
            f"--learning_rate is {optimization.learning_rate}, but --optimizer prodigy multiplies "
            "it by the one it finds; give --learning_rate 1."
        )
    if {optimization.text_encoder_lr, optimization.word_lr} - {None, optimization.learning_rate}:
        yield (
            "--optimizer prodigy finds one rate for all; leave out --text_encoder_lr and --word_lr."
        )
    if config.instance.concepts is not None:
        yield (
            "--optimizer prodigy finds one rate for all --concepts, which each need their own; "
            "leave it out, or train one concept a run."
        )


def _validation_problems(config: Config) -> Iterator[str]:
    one = config.instance.concepts is None  # several are checked one by one, with what they add
    if one and config.run.validation_steps and not config.run.validation_prompt:
        yield "--validation_steps needs --validation_prompt: say what to draw."
    if config.scores.validation_scores and not config.run.validation_steps:
        yield "--validation_scores needs --validation_steps: say how often to draw and to measure."
    if config.scores.keep_best and not config.scores.validation_scores:
        yield "--keep_best needs --validation_scores, by which it tells the best."


def _method_problems(config: Config) -> Iterator[str]:
    method, instance = config.adapter.method, config.instance
    diagonal = method in ("loldu", "svfit")
    if config.prior.prior_target == "base" and method == "dreambooth":
        yield (
            "--prior_target base needs the base, which --method dreambooth overwrites; use "
            "--prior_target images."
        )
    if instance.concepts is None:
        yield from _word_problems(config)
    elif not diagonal and method != "textual_inversion":
        yield (
            "--concepts is for loldu, svfit and textual_inversion; give --method "
            f"{method} one concept a run, with --instance_data_dir."
        )


def _word_problems(config: Config) -> Iterator[str]:
    method, instance = config.adapter.method, config.instance
    word, start = instance.placeholder_token, instance.initializer_token
    if instance.instance_data_dir is None:
        yield (
            "--instance_data_dir is missing: give the folder with the concept's pictures, or "
            "--concepts for several."
        )
    if word is None and method == "textual_inversion":
        yield (
            "--method textual_inversion needs --placeholder_token, such as <dog>, and "
            "--initializer_token, such as dog."
        )
    if word is None:
        return
    if method == "dreambooth":
        yield "--placeholder_token is for the other methods; leave it out with --method dreambooth."
    if start is None:
        yield f"--placeholder_token {word} needs --initializer_token, a word to start from."
    prompt = instance.instance_prompt
    if prompt is not None and word not in prompt.split():
        yield f"--instance_prompt lacks the --placeholder_token {word}; write it there as a word."


_ADAPTERS: tuple[Method, ...] = ("loldu", "svfit", "lora")
_ONLY_FOR: dict[str, tuple[Method, ...]] = {
    "rank": _ADAPTERS,
    "alpha": _ADAPTERS,
    "target_modules": _ADAPTERS,
    "diagonal_init": ("loldu", "svfit"),
    "residual": ("loldu", "svfit"),
    "train_scale": ("loldu", "svfit"),
    "normalize_directions": ("loldu", "svfit"),
    "max_delta_norm": ("loldu", "svfit"),
    "pivoting": ("loldu",),
    "train_text_encoder": (*_ADAPTERS, "dreambooth"),
    "text_encoder_lr": (*_ADAPTERS, "dreambooth"),
    "initializer_token": (*_ADAPTERS, "textual_inversion"),
    "word_lr": (*_ADAPTERS, "textual_inversion"),
}
"""Options that the other methods have no use for."""
_ONLY_WITH = {
    "text_encoder_lr": "train_text_encoder",
    "initializer_token": "placeholder_token",
    "word_lr": "placeholder_token",
}
"""Options that do nothing unless another is given."""
_AT_LEAST = {
    "clip_skip": 0,
    "resolution": 8,
    "num_class_images": 1,
    "prior_loss_weight": 0,
    "prior_batch_size": 1,
    "max_train_steps": 1,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "lr_warmup_steps": 0,
    "adam_weight_decay": 0,
    "max_grad_norm": 0,
    "noise_offset": 0,
    "seed": 0,
    "checkpointing_steps": 0,
    "checkpoints_total_limit": 1,
    "logging_steps": 1,
    "validation_steps": 0,
    "validation_images": 1,
    "num_inference_steps": 1,
    "guidance_scale": 0,
}
_ABOVE_ZERO = {
    *("alpha", "learning_rate", "text_encoder_lr", "word_lr", "snr_gamma", "max_delta_norm")
}
