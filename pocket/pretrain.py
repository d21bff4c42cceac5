"""The pre-training of the pocket base, stage by stage; each stage resumes or is skipped if done."""

# diffusers and transformers type their models' parts and options loosely or wrongly.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import copy
import hashlib
import json
import logging
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    ViTImageProcessor,
    ViTModel,
)

from pocket.captions import full_caption
from pocket.classifier import AttributeClassifier, pretrain_classifier, save_classifier
from pocket.clip import pretrain_clip
from pocket.corpus import Corpus, make_corpus
from pocket.denoiser import Captioned, build_noise_scheduler, pretrain_denoiser, teach_names
from pocket.dino import pretrain_dino
from pocket.fitting import device
from pocket.judge import draw, judge_base, judge_names, sheet
from pocket.render import SIZE_PX, render
from pocket.tokenizer import add_names, build_tokenizer
from pocket.vae import pretrain_vae, reconstruct
from pocket.world import named_scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretraining:
    """Amounts of everything; the defaults made the shipped weights.

    Attributes:
        pictures: Pictures for training.
        held_out: Pictures for judging.
        vae_steps: Steps of the VAE.
        vae_batch: Pictures per step of the VAE.
        text_steps: Steps of the CLIP whose text tower starts the pipeline's text encoder.
        clip_steps: Steps of the judging CLIP.
        clip_batch: Pairs per step of both CLIPs.
        classifier_steps: Steps of the classifier.
        classifier_batch: Pictures per step of the classifier.
        dino_steps: Steps of the DINO.
        paired: Pictures of things in two settings each, for the DINO.
        dino_batch: Things per step of the DINO.
        denoiser_steps: Steps of the UNet and text encoder on the world.
        denoiser_batch: Pictures per step of the UNet.
        named: Pictures of individuals, for the last stage.
        names_steps: Steps of the last stage.
        reconstructions: VAE reconstructions for the classifier.
        judged: Held-out prompts for judging the base.
    """

    pictures: int = 50_000
    held_out: int = 1_000
    vae_steps: int = 4_500
    vae_batch: int = 8
    text_steps: int = 200
    clip_steps: int = 500
    clip_batch: int = 128
    classifier_steps: int = 1_500
    classifier_batch: int = 50
    dino_steps: int = 600
    paired: int = 20_000
    dino_batch: int = 64
    denoiser_steps: int = 4_400
    denoiser_batch: int = 64
    named: int = 6_000
    names_steps: int = 1_500
    reconstructions: int = 4_000
    judged: int = 256


TINY = Pretraining(200, 20, 2, 4, 2, 2, 8, 2, 10, 2, 100, 4, 2, 4, 100, 2, 20, 4)
"""Every stage at its smallest, for tests: it takes seconds."""


def pretrain(output: Path, build: Path, settings: Pretraining) -> None:
    """Render the world, train every part, and write `base` and `encoders` into `output`.

    Each world has its own folder of work files, and each VAE a folder for files that depend on it,
    so that changed settings never continue with the work files of others.
    """
    build = build / f"world-{settings.pictures}-{settings.held_out}"
    train = make_corpus(build, "train", settings.pictures, seed=0)
    held_out = make_corpus(build, "held_out", settings.held_out, seed=1_000_000)
    tokenizer = build_tokenizer()
    token_ids = train.token_ids(tokenizer)

    vae = pretrain_vae(train, held_out, build, settings.vae_steps, settings.vae_batch)
    vae.eval().requires_grad_(False)
    coded = build / f"vae-{_digest(vae)}"
    coded.mkdir(exist_ok=True)
    world = Captioned(_latents(vae, train, coded, "train"), token_ids)
    blurred = _reconstructions(vae, train, coded, settings.reconstructions)
    classifier = pretrain_classifier(
        train, blurred, coded, settings.classifier_steps, settings.classifier_batch
    )

    def clip(name: str, steps: int, seed: int) -> CLIPModel:
        return pretrain_clip(
            name,
            train,
            token_ids,
            tokenizer,
            build,
            steps=steps,
            batch=settings.clip_batch,
            seed=seed,
        )

    first = clip("text", settings.text_steps, seed=1)
    text_encoder = CLIPTextModel(first.config.text_config)
    text_encoder.load_state_dict(first.text_model.state_dict())

    def judged(pipeline: StableDiffusionPipeline) -> dict[str, object]:
        return judge_base(pipeline, classifier, held_out, min(64, settings.judged))

    named = make_corpus(build, "named", settings.named, seed=2_000_000)
    pipeline = _diffusion(vae, text_encoder, tokenizer, world, named, settings, coded, judged)
    judge_clip = clip("clip", settings.clip_steps, seed=2)
    pairs = make_corpus(build, "pairs", settings.paired, seed=3_000_000)
    dino = pretrain_dino(pairs, build, settings.dino_steps, settings.dino_batch)
    _publish(output, pipeline, judge_clip, tokenizer, dino, classifier)
    report = judge_base(pipeline, classifier, held_out, settings.judged)
    names = judge_names(pipeline, classifier)
    record = {"recipe": asdict(settings), "judgement": report, "individuals": names}
    (output / "base.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    base_sheet(pipeline, held_out).save(output / "base.png")


def _diffusion(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    world: Captioned,
    named: Corpus,
    settings: Pretraining,
    build: Path,
    judged: Callable[[StableDiffusionPipeline], dict[str, object]],
) -> StableDiffusionPipeline:
    """Train UNet and text encoder on the world, then on individuals with names."""
    tokenizer = copy.deepcopy(tokenizer)  # the judging CLIP has no names
    add_names(tokenizer)

    def at_checkpoint(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> dict[str, object]:
        return judged(_pipeline(vae, text_encoder, tokenizer, unet))

    steps, batch = settings.denoiser_steps, settings.denoiser_batch
    unet = pretrain_denoiser(world, tokenizer, text_encoder, build, steps, batch, at_checkpoint)
    individuals = Captioned(_latents(vae, named, build, "named"), named.token_ids(tokenizer))
    build = build / f"denoiser-{_digest(unet)}"
    build.mkdir(exist_ok=True)
    steps = settings.names_steps
    teach_names(
        unet, text_encoder, tokenizer, world, individuals, build, steps, batch, at_checkpoint
    )
    return _pipeline(vae, text_encoder.eval(), tokenizer, unet.eval())


def base_sheet(pipeline: StableDiffusionPipeline, held_out: Corpus) -> Image.Image:
    """Draw held-out prompts and individuals, each with seven samples and a true render."""
    asked = [(held_out.full_captions[i], Image.fromarray(held_out.pictures[i])) for i in range(8)]
    rng = random.Random(0)
    for scene in (named_scene(rng) for _ in range(3)):
        asked.append((full_caption(scene), render(scene, rng)))
    return sheet([(text, [*draw(pipeline, [text] * 7, seed=100), true]) for text, true in asked])


def _pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def _latents(
    vae: AutoencoderKL, corpus: Corpus, build: Path, name: str
) -> Float[Tensor, "n c h w"]:
    """Return the scaled latents (posterior means) of a whole corpus, computed once."""
    file = build / f"{name}-{len(corpus)}.safetensors"
    if not file.exists():
        parts = [
            vae.encode(corpus.pixels(slice(i, i + 64)).to(device())).latent_dist.mean.half().cpu()
            for i in tqdm(range(0, len(corpus), 64), desc="encode")
        ]
        save_file({"latents": torch.cat(parts).contiguous()}, file)
    return load_file(file)["latents"].float() * vae.config.scaling_factor


def _reconstructions(
    vae: AutoencoderKL, corpus: Corpus, build: Path, count: int
) -> Float[Tensor, "n 3 h w"]:
    file = build / f"reconstructions-{count}.safetensors"
    if not file.exists():
        parts = [
            reconstruct(vae, corpus.pixels(slice(i, min(i + 64, count))).to(device())).half().cpu()
            for i in range(0, count, 64)
        ]
        save_file({"pixels": torch.cat(parts).contiguous()}, file)
    return load_file(file)["pixels"]


def _publish(
    output: Path,
    pipeline: StableDiffusionPipeline,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    dino: ViTModel,
    classifier: AttributeClassifier,
) -> None:
    """Write all weights in half precision; the judge then sees the written weights."""
    encoders = output / "encoders"
    for folder in (output / "base", encoders):
        shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(output / "base")
    pipeline.to(dtype=torch.float32)
    # transformers would load the text encoder in the dtype of its config; the UNet's is float32.
    config = output / "base" / "text_encoder" / "config.json"
    text = config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"')
    config.write_text(text, encoding="utf-8")
    size = {"height": SIZE_PX, "width": SIZE_PX}
    half = [0.5, 0.5, 0.5]
    clip.half().save_pretrained(encoders / "clip")
    tokenizer.save_pretrained(encoders / "clip")
    CLIPImageProcessor(
        size={"shortest_edge": SIZE_PX}, crop_size=size, image_mean=half, image_std=half
    ).save_pretrained(encoders / "clip")
    dino.half().save_pretrained(encoders / "dino")
    ViTImageProcessor(size=size, image_mean=half, image_std=half).save_pretrained(encoders / "dino")
    save_classifier(classifier, encoders / "attributes.safetensors")
