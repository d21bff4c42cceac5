"""The model card: a README.md that the Hugging Face hub understands and a person can use."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from loldu.base.record import CONFIG
from trainer.methods.dreambooth import PIPELINE
from trainer.methods.loldu import CONCEPT
from trainer.methods.lora_file import LORA
from trainer.methods.method import all_methods, method_named
from trainer.methods.peft import PEFT
from trainer.methods.textual_inversion import LEARNED_WORD
from trainer.options.config import Config
from trainer.results.metadata import Training, base_name, is_on_hub, license_of

CARD, TEMPLATE = "README.md", "card.md.jinja"
_USUAL_STEPS, _USUAL_GUIDANCE = 50, 7.5
"""Defaults of diffusers' pipelines."""
_ABOUT = {
    CONFIG: "every option of the run: `--preset config.toml` repeats it",
    "metrics.jsonl": "losses and the size of the change, step by step",
}


@dataclass(frozen=True)
class Sample:
    """Two pictures of one prompt, from the same starting noise.

    Attributes:
        prompt: The prompt.
        adapted: File that the concept drew.
        base: File that the base drew, if it could.
    """

    prompt: str
    adapted: str
    base: str | None


@dataclass(frozen=True)
class Result:
    """Everything the card of a finished run shows.

    Attributes:
        config: Options of the concept.
        metadata: Metadata of the concept file.
        training: Steps, time, pictures and scores.
        files: Size in bytes of each file beside the card.
        samples: Pictures to show.
        repository: Name of the repository on the hub; none if the result is not pushed.
        pipeline_class: Name of the base's pipeline class.
        checked: Relative errors of the LoRA by the arithmetic of other programs, or "".
        word_keys: By text encoder, the key of its vector in the file of a learned word; {} if that
            file has one vector.
        tag: Tag of the base's family.
    """

    config: Config
    metadata: dict[str, Any]
    training: Training
    files: dict[str, int]
    samples: Sequence[Sample]
    repository: str | None
    pipeline_class: str
    checked: str = ""
    word_keys: Mapping[str, str] = field(default_factory=dict[str, str])
    tag: str = "stable-diffusion"


def card_data(
    config: Config,
    prompt: str | None = None,
    samples: Sequence[Sample] = (),
    tag: str = Result.tag,
) -> ModelCardData:
    """Return the card's front matter; it names the base only if the base is on the hub."""
    method = method_named(config.adapter.method)
    exports = method.makes_concept and config.result.lora_file != "no"
    tags = ["text-to-image", tag, "diffusers", "dreambooth", "loldu"]
    relation = "finetune" if method.trains_base else "adapter"
    return ModelCardData(
        base_model=base_name(config) if is_on_hub(config) else None,
        base_model_relation=relation if is_on_hub(config) else None,
        library_name="diffusers",
        license=license_of(config),
        pipeline_tag="text-to-image",
        tags=[*tags, "lora"] if exports or method.file_name == LORA else tags,
        instance_prompt=prompt,
        widget=[{"text": s.prompt, "output": {"url": s.adapted}} for s in samples] or None,
    )


def model_card(result: Result) -> ModelCard:
    """Return the whole card: pictures, how to use the result, and how it was trained."""
    config, metadata, name = result.config, result.metadata, base_name(result.config)
    prompt = metadata["instance_prompt"]
    words = [word for word in (metadata.get("token"), metadata.get("class_name")) if word]
    on_hub = is_on_hub(config)
    text = _template().render(
        vars(result),
        CONCEPT=CONCEPT,
        LORA=LORA,
        WORD=LEARNED_WORD,
        PIPELINE=PIPELINE,
        PEFT=PEFT,
        about={**_ABOUT, **{method.file_name: method.about for method in all_methods()}},
        front_matter=card_data(config, prompt, result.samples, result.tag).to_yaml(),
        title=_one_line(" ".join(words) or prompt),
        prompt=_one_line(prompt),
        method=method_named(config.adapter.method),
        on_hub=on_hub,
        base_name=name,
        base_link=f"[{name}](https://huggingface.co/{name})" if on_hub else f"`{name}`",
        loader="from_single_file" if name.endswith(".safetensors") else "from_pretrained",
        **_code_arguments(config, prompt),
    )
    return ModelCard(text, ignore_metadata_errors=True)


def is_card(path: Path) -> bool:
    """Tell whether a README.md is a card that this module wrote."""
    return "\n- dreambooth\n- loldu\n" in path.read_text(encoding="utf-8", errors="replace")


def _code_arguments(config: Config, prompt: str) -> dict[str, Any]:
    """Return the arguments that load the base as in training and draw as the samples were drawn."""
    source, drawing, dtype = [_quoted(base_name(config))], [_quoted(prompt)], None
    if config.base.revision and is_on_hub(config):
        source.append(f"revision={_quoted(config.base.revision)}")
    if config.adapter.method == "svfit":  # an SVD gives other factors in another dtype
        dtype = {"fp16": "float16", "bf16": "bfloat16"}.get(config.optimization.mixed_precision)
    if dtype:
        source.append(f"torch_dtype=torch.{dtype}")
    if config.run.num_inference_steps != _USUAL_STEPS:
        drawing.append(f"num_inference_steps={config.run.num_inference_steps}")
    if config.run.guidance_scale != _USUAL_GUIDANCE:
        drawing.append(f"guidance_scale={config.run.guidance_scale}")
    return {"source": source, "drawing": drawing, "torch_dtype": dtype}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(quoted=_quoted, cell=_cell)
    return environment.get_template(TEMPLATE)


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
