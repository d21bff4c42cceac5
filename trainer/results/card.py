"""The model card: a README.md that the Hugging Face hub understands and a person can use."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from loldu.base.config import BaseModelConfig
from loldu.base.record import CONFIG
from trainer.methods.lora_file import LORA
from trainer.methods.method import FILE_NAMES, LEARNED_WORD
from trainer.options.config import AdapterConfig, Config
from trainer.results.metadata import Training, base_name, is_on_hub, license_of

CARD = "README.md"
CONCEPT, WHOLE = FILE_NAMES["loldu"], FILE_NAMES["dreambooth"]
_USUAL_STEPS, _USUAL_GUIDANCE = 50, 7.5
"""What a pipeline of diffusers takes unless told otherwise."""
_PAPER = "https://arxiv.org/abs/2410.13618"
_METHODS = {
    "loldu": f"[LoLDU]({_PAPER})",
    "svfit": "SVFit",
    "lora": "LoRA",
    "dreambooth": "DreamBooth",
    "textual_inversion": "Textual Inversion",
}
_ABOUT = {
    CONCEPT: "the concept, exactly as trained, for LoLDU on this base",
    LORA: "a LoRA, for A1111, ComfyUI and diffusers",
    LEARNED_WORD: "the embedding of its word, for A1111, ComfyUI and diffusers",
    WHOLE: "the whole pipeline, for diffusers",
    CONFIG: "every option of the run: `--preset config.toml` repeats it",
    "metrics.jsonl": "losses and the size of the change, step by step",
}


@dataclass(frozen=True)
class Sample:
    """A prompt, and files with what the concept, and perhaps the base, draws from one noise."""

    prompt: str
    adapted: str
    base: str | None


@dataclass(frozen=True)
class Result:
    """A finished run, as far as its card tells.

    Attributes:
        config: Its options.
        metadata: That of the concept file.
        training: What it took.
        files: What lies beside the card, in bytes.
        samples: What to show.
        repository: Its place on the hub; none for a card that stays here.
    """

    config: Config
    metadata: dict[str, Any]
    training: Training
    files: dict[str, int]
    samples: Sequence[Sample]
    repository: str | None


def card_data(
    config: Config, prompt: str | None = None, samples: Sequence[Sample] = ()
) -> ModelCardData:
    """The card's front matter; a base that is not on the hub has no name there."""
    method = config.adapter.method
    has_lora = method == "lora" or (
        method in ("loldu", "svfit") and config.result.lora_file != "no"
    )
    tags = ["text-to-image", "stable-diffusion", "diffusers", "dreambooth", "loldu"]
    relation = "finetune" if method == "dreambooth" else "adapter"
    return ModelCardData(
        base_model=base_name(config) if is_on_hub(config) else None,
        base_model_relation=relation if is_on_hub(config) else None,
        library_name="diffusers",
        license=license_of(config),
        pipeline_tag="text-to-image",
        tags=[*tags, "lora"] if has_lora else tags,
        instance_prompt=prompt,
        widget=[{"text": s.prompt, "output": {"url": s.adapted}} for s in samples] or None,
    )


def model_card(result: Result) -> ModelCard:
    """The whole card: what it is, pictures, how to use it, how it was made."""
    data = card_data(result.config, result.metadata["instance_prompt"], result.samples)
    sections = [
        f"# {_one_line(_title(result.metadata))}",
        _summary(result),
        _pictures(result.samples),
        "## How to use it",
        _use(result),
        'Where there is a GPU, `pipeline.to("cuda")` comes before drawing.',
        "## How it was trained",
        _table(("", ""), _facts(result)),
        "## Files",
        _table(("", "", "bytes"), _files(result.files)),
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n", ignore_metadata_errors=True)


def is_card(path: Path) -> bool:
    """Whether a README.md is a card that this module wrote."""
    return "\n- dreambooth\n- loldu\n" in path.read_text(encoding="utf-8", errors="replace")


def _title(metadata: dict[str, Any]) -> str:
    words = [word for word in (metadata.get("token"), metadata.get("class_name")) if word]
    return " ".join(words) or metadata["instance_prompt"]


def _summary(result: Result) -> str:
    name = base_name(result.config)
    base = f"[{name}](https://huggingface.co/{name})" if is_on_hub(result.config) else f"`{name}`"
    return (
        f"Teaches {base} what `{_one_line(_title(result.metadata))}` is, learned from "
        f"{result.training.pictures} pictures with {_METHODS[result.config.adapter.method]}: "
        f"{result.training.parameters:,} numbers."
    )


def _pictures(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    rows = [("with it", *(f"![with it]({sample.adapted})" for sample in samples))]
    if all(sample.base for sample in samples):
        rows.insert(0, ("base", *(f"![base]({sample.base})" for sample in samples)))
    table = _table(("", *(sample.prompt for sample in samples)), rows)
    return f"{table}\n\nEach column has one prompt and one starting noise."


def _use(result: Result) -> str:
    """Code for every file that can be used on its own."""
    files, place = result.files, result.repository
    prompt = _one_line(result.metadata["instance_prompt"])
    word = _load_word(place) if LEARNED_WORD in files else []
    parts: list[str] = []
    if CONCEPT in files:
        imports, file = ["from loldu import load_concept"], _quoted(CONCEPT)
        if place:
            imports.insert(0, "from huggingface_hub import hf_hub_download")
            file = f"hf_hub_download({_quoted(place)}, {file})"
        loads = [f"load_concept(pipeline, {file})", *word]
        parts += ["With LoLDU installed:", _python(result, imports, loads)]
    if LORA in files:
        loads = [f"pipeline.load_lora_weights({_quoted(place or LORA)})", *word]
        parts += ["With diffusers alone:", _python(result, [], loads)]
        parts.append(
            f"In A1111 put `{LORA}` into `models/Lora`, in ComfyUI into `models/loras`, under a "
            f"name of your choice, and ask for `{prompt}`."
        )
    elif CONCEPT not in files:
        parts += ["With diffusers:", _python(result, [], word)]
    if word:
        parts.append(
            f"In A1111 and ComfyUI `{LEARNED_WORD}` goes into `embeddings`, and its word is what "
            "you name the file."
        )
    if not is_on_hub(result.config) and WHOLE not in files:
        parts.append(f"`{base_name(result.config)}` stands for your copy of the base.")
    return "\n\n".join(parts)


def _load_word(repository: str | None) -> list[str]:
    if repository is None:
        return [f"pipeline.load_textual_inversion({_quoted(LEARNED_WORD)})"]
    named = f"{_quoted(repository)}, weight_name={_quoted(LEARNED_WORD)}"
    return [f"pipeline.load_textual_inversion({named})"]


def _python(result: Result, imports: Sequence[str], loads: Sequence[str]) -> str:
    """Lines that draw as the samples were drawn; only an SVD needs the base in its own dtype."""
    config, source = result.config, [_quoted(base_name(result.config))]
    if WHOLE in result.files:
        source = [_quoted(WHOLE)]
    elif config.base.revision and is_on_hub(config):
        source.append(f"revision={_quoted(config.base.revision)}")
    imports = ["from diffusers import StableDiffusionPipeline", *imports]
    if config.adapter.method == "svfit" and config.optimization.mixed_precision != "no":
        imports.insert(0, "import torch")
        dtype = {"fp16": "float16", "bf16": "bfloat16"}[config.optimization.mixed_precision]
        source.append(f"torch_dtype=torch.{dtype}")
    drawing = [_quoted(result.metadata["instance_prompt"])]
    if config.run.num_inference_steps != _USUAL_STEPS:
        drawing.append(f"num_inference_steps={config.run.num_inference_steps}")
    if config.run.guidance_scale != _USUAL_GUIDANCE:
        drawing.append(f"guidance_scale={config.run.guidance_scale}")
    loader = "from_single_file" if source[0].endswith('.safetensors"') else "from_pretrained"
    lines = [
        "```python",
        *imports,
        "",
        f"pipeline = StableDiffusionPipeline.{loader}({', '.join(source)})",
        *([] if WHOLE in result.files else _read_as(config.base)),
        *loads,
        f'pipeline({", ".join(drawing)}).images[0].save("picture.png")',
        "```",
    ]
    return "\n".join(lines)


def _read_as(base: BaseModelConfig) -> list[str]:
    """Lines that read a base as it was for training, where it does not say so itself."""
    lines: list[str] = []
    if base.prediction_type:
        told = f"prediction_type={_quoted(base.prediction_type)}"
        lines.append(f"pipeline.scheduler.register_to_config({told})")
    if base.clip_skip:
        layers = "pipeline.text_encoder.encoder.layers"
        lines.append(f"{layers} = {layers}[:-{base.clip_skip}]")
    return lines


def _facts(result: Result) -> list[tuple[str, ...]]:
    config, training, metadata = result.config, result.training, result.metadata
    adapter, optimization, prior = config.adapter, config.optimization, config.prior
    batch = optimization.train_batch_size * optimization.gradient_accumulation_steps
    vae, revision = metadata["base"].get("vae"), metadata["base"].get("revision")
    skip = config.base.clip_skip
    facts = [
        ("base", base_name(config) + (f" at {revision}" if revision else "")),
        ("VAE", vae or "the base's own"),
        *([("clip skip", f"{skip} ({skip + 1} in A1111)")] if skip else []),
        ("method", _METHODS[adapter.method]),
        *_adapter_facts(adapter),
        ("trained numbers", f"{training.parameters:,}"),
        ("pictures", f"{training.pictures} at {config.instance.resolution} pixels"),
        ("prompt", f"`{metadata['instance_prompt']}`"),
        (
            "prior preservation",
            f"{training.class_pictures} class pictures, weight {prior.prior_loss_weight:g}"
            if training.class_pictures
            else "none",
        ),
        ("steps", f"{training.progress.step:,}, {batch} pictures each"),
        ("learning rate", f"{optimization.learning_rate:g}, {optimization.lr_scheduler}"),
        (
            "precision",
            {"no": "fp32"}.get(optimization.mixed_precision, optimization.mixed_precision),
        ),
        ("seed", str(optimization.seed)),
        ("time", f"{training.progress.seconds:.0f} s"),
        *((metric, f"{score:.3f}") for metric, score in (training.scores or {}).items()),
        ("versions", ", ".join(f"{name} {v}" for name, v in metadata["versions"].items())),
    ]
    return facts


def _adapter_facts(adapter: AdapterConfig) -> list[tuple[str, ...]]:
    if adapter.method not in ("loldu", "svfit", "lora"):
        return []
    layers = ", ".join(f"`{name}`" for name in adapter.target_modules)
    text = " and the text encoder's attention" if adapter.train_text_encoder else ""
    return [("rank", str(adapter.rank)), ("layers", f"{layers}{text}")]


def _files(files: dict[str, int]) -> list[tuple[str, ...]]:
    return [(f"`{name}`", _ABOUT[name], f"{size:,}") for name, size in files.items()]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
