"""Validate options before anything is loaded."""

import logging
from collections.abc import Iterator, Mapping

from loldu.errors import LoLDUError
from loldu.options import limit_problems, options, text_problems, values_of
from loldu.prompts import class_after
from trainer.options.config import DIAGONALS, Config

logger = logging.getLogger(__name__)

_HUBER_DELTA = options(Config)["huber_delta"].default


def check(config: Config) -> None:
    """Refuse values that cannot work, before anything is loaded.

    Raises:
        LoLDUError: If there is one; the message names the flag and what to do.
    """
    for problem in _problems(config):
        raise LoLDUError(problem)


def check_fit(config: Config, typed: Mapping[str, str]) -> None:
    """Refuse typed options that the method does not use; log those of a preset.

    A preset is often used with another method than its own, and a `config.toml` has every option.

    Args:
        config: The options.
        typed: The options of the command line, with the flag of each.

    Raises:
        LoLDUError: If one of these would do nothing and is not at its default.
    """
    method, values = config.adapter.method, values_of(config)
    unused: list[str] = []
    for option in options(type(config)).values():
        if values[option.name] == option.default:
            continue
        flag = typed.get(option.name)
        if option.methods and method not in option.methods:
            if flag:
                *others, last = option.methods
                methods = f"{', '.join(others)} and {last}" if others else last
                raise LoLDUError(f"{flag} is for {methods}; leave it out with --method {method}.")
            unused.append(f"--{option.name}")
        elif option.needs and flag and not _is_given(config, option.needs):
            raise LoLDUError(
                f"{flag} does nothing without --{option.needs}: add that, or leave it out."
            )
    if unused:
        logger.info("--method %s does not use %s of the preset.", method, ", ".join(unused))


def _is_given(config: Config, name: str) -> bool:
    in_tables = config.instance.concepts and options(type(config))[name].per_concept
    return bool(values_of(config)[name] or in_tables)


def _problems(config: Config) -> Iterator[str]:
    yield from limit_problems(config)
    yield from text_problems(config)
    if not config.adapter.target_modules:
        yield "--target_modules is empty; name at least one layer, such as to_k."
    yield from _method_problems(config)
    yield from _optimization_problems(config)
    yield from _validation_problems(config)
    yield from _prior_problems(config)
    prompt, token = config.instance.instance_prompt, config.instance.token
    if prompt and token and class_after(prompt, token) is None:
        yield f"--token is {token}, which is not in the --instance_prompt ({prompt})."
    if config.result.push_to_hub and config.adapter.method == "dreambooth":
        yield (
            "--push_to_hub is for small results; leave it out with --method dreambooth and upload "
            "the gigabytes of its folder pipeline with `hf upload`."
        )


def _prior_problems(config: Config) -> Iterator[str]:
    prior = config.prior
    if prior.class_pictures == "concept":
        if not prior.with_prior_preservation:
            yield (
                "--class_pictures concept does nothing without --with_prior_preservation: add that."
            )
        if prior.prior_target != "base":
            yield (
                "--class_pictures concept would teach the class to look like the concept; add "
                "--prior_target base."
            )
        if prior.class_data_dir:
            yield ("--class_pictures concept uses no --class_data_dir; leave one of the two out.")
    elif prior.with_prior_preservation and not (prior.class_prompt or prior.class_data_dir):
        yield (
            "--with_prior_preservation needs --class_prompt, such as "
            '"a photo of a dog", to draw class pictures.'
        )


def _optimization_problems(config: Config) -> Iterator[str]:
    optimization = config.optimization
    lowest, highest = optimization.min_timestep, optimization.max_timestep
    if lowest >= highest:
        yield (
            f"--min_timestep {lowest} is not below --max_timestep {highest}; leave some timesteps "
            "between them."
        )
    if optimization.loss != "huber" and optimization.huber_delta != _HUBER_DELTA:
        yield "--huber_delta does nothing without --loss huber: add that, or leave it out."
    if optimization.optimizer != "prodigy":
        return
    if optimization.learning_rate < 0.1:
        yield (
            f"--learning_rate is {optimization.learning_rate}, but --optimizer prodigy multiplies "
            "it by the rate that it finds; use --learning_rate 1."
        )
    if {optimization.text_encoder_lr, optimization.word_lr} - {None, optimization.learning_rate}:
        yield (
            "--optimizer prodigy finds one rate for all; leave out --text_encoder_lr and --word_lr."
        )
    if config.instance.concepts is not None:
        yield (
            "--optimizer prodigy finds one rate for all --concepts, which each need their own; "
            "use another optimizer, or train one concept per run."
        )


def _validation_problems(config: Config) -> Iterator[str]:
    one = config.instance.concepts is None  # tables of --concepts may have prompts of their own
    if one and config.run.validation_steps and not config.run.validation_prompt:
        yield "--validation_steps needs --validation_prompt, the prompts to draw."
    if config.scores.validation_scores and not config.run.validation_steps:
        yield "--validation_scores needs --validation_steps, the steps between scores."
    if config.scores.keep_best and not config.scores.validation_scores:
        yield "--keep_best needs --validation_scores to find the best step."


def _method_problems(config: Config) -> Iterator[str]:
    method, instance = config.adapter.method, config.instance
    for option, target in (
        ("--prior_target", config.prior.prior_target),
        ("--unmasked_target", instance.unmasked_target),
    ):
        if target == "base" and method == "dreambooth":
            yield (
                f"{option} base needs the frozen base, but --method dreambooth trains its "
                f"weights; use {option} images."
            )
    if config.adapter.init_concept and config.adapter.init_predictor:
        yield "--init_concept and --init_predictor are two starts; leave one of them out."
    performance = config.performance
    recomputes = performance.gradient_checkpointing or performance.on_oom == "adapt"
    if instance.aspect_buckets and instance.concepts is not None and recomputes:
        yield (
            "--aspect_buckets with --concepts does not go with --gradient_checkpointing or with "
            "--on_oom adapt; leave them out, or train one concept per run."
        )
    if method == "peft" and config.adapter.adapter_config is None:
        yield (
            "--method peft needs --adapter_config, a JSON file with the options of PEFT's method, "
            'such as {"peft_type": "IA3"}.'
        )
    if instance.concepts is None:
        yield from _word_problems(config)
    elif method not in DIAGONALS and method != "textual_inversion":
        yield (
            "--concepts is for loldu, svfit and textual_inversion; with --method "
            f"{method}, train one concept per run with --instance_data_dir."
        )


def _word_problems(config: Config) -> Iterator[str]:
    method, instance = config.adapter.method, config.instance
    word, start = instance.placeholder_token, instance.initializer_token
    if instance.instance_data_dir is None:
        yield (
            "--instance_data_dir is missing: name the folder with the concept's pictures, or "
            "use --concepts for several concepts."
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
