"""The pre-training of the pocket base, stage by stage; each stage resumes or is skipped if done."""

# diffusers and transformers type their models' parts and options loosely or wrongly.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import copy
import hashlib
import json
import math
import random
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    ViTModel,
)

from loldu.base.open import weights_digest
from loldu.errors import LoLDUError
from pocket.captions import full_caption
from pocket.checkpoint import (
    build_pipeline,
    open_checkpoint,
    publish_clip,
    publish_dino,
    publish_pipeline,
    save_checkpoint,
)
from pocket.classifier import (
    AttributeClassifier,
    load_classifier,
    pretrain_classifier,
    save_classifier,
)
from pocket.clip import pretrain_clip
from pocket.corpus import Corpus, make_corpus
from pocket.denoiser import (
    Captioned,
    Denoising,
    build_unet,
    pretrain_denoiser,
)
from pocket.dino import pretrain_dino
from pocket.fitting import device
from pocket.judge import draw, judge_base, judge_names, sheet
from pocket.render import SIZE_PX, render
from pocket.tokenizer import add_names, build_tokenizer
from pocket.vae import normalize_latents, pretrain_vae, reconstruct
from pocket.world import named_scene

Encoder = Literal["attributes", "dino", "clip"]
ENCODERS: tuple[Encoder, ...] = ("attributes", "dino", "clip")


@dataclass(frozen=True)
class Pretraining:
    """Amounts of everything.

    Attributes:
        pictures: Pictures of one thing, for training.
        two: Pictures of two things, for training.
        named: Pictures of individuals with their names, for training.
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
        reconstructions: VAE reconstructions for the classifier, of one thing and of two each.
        judged: Held-out prompts for judging the base.
        denoiser: Size and training of the UNet.
    """

    pictures: int = 100_000
    two: int = 16_000
    named: int = 10_000
    held_out: int = 1_000
    vae_steps: int = 4_500
    vae_batch: int = 8
    text_steps: int = 200
    clip_steps: int = 500
    clip_batch: int = 128
    classifier_steps: int = 3_000
    classifier_batch: int = 50
    dino_steps: int = 600
    paired: int = 20_000
    dino_batch: int = 64
    reconstructions: int = 2_000
    judged: int = 256
    denoiser: Denoising = field(default_factory=Denoising)


TINY = Pretraining(
    *(200, 40, 100, 20, 2, 4, 2, 2, 8, 2, 10, 2, 100, 4, 20, 4),
    denoiser=Denoising(steps=2, batch=10),
)
"""Every stage at its smallest, for tests: it takes seconds."""


def pretrain(
    output: Path,
    build: Path,
    settings: Pretraining,
    keep: Path | None = None,
    start: Path | None = None,
) -> None:
    """Render the world, train every part, and write `base` and `encoders` into `output`.

    Each world has its own folder of work files, and each VAE a folder for files that depend on it,
    so that changed settings never continue with the work files of others.

    Args:
        output: Folder for `base` and `encoders`.
        build: Folder for work files.
        settings: Amounts of everything.
        keep: Folder with a finished `base` and `encoders`. Its VAE and encoders are kept; UNet and
            text encoder are trained.
        start: Pipeline folder that a checkpoint of this training wrote. UNet and text encoder go
            on from there.

    Raises:
        LoLDUError: If `keep` or `start` is no such folder; nothing is rendered or trained then.
    """
    if keep and not all((keep / name).is_dir() for name in ("base", "encoders")):
        raise LoLDUError(f"--keep {keep} has no base and encoders; give a folder like pocket.")
    build = build / f"world-{settings.pictures}-{settings.held_out}"
    tokenizer = build_tokenizer()
    named_tokenizer = copy.deepcopy(tokenizer)  # the judging CLIP has no names
    add_names(named_tokenizer)
    batch = settings.denoiser.batch
    # A checkpoint is opened first: it may be wrong, and the other parts take hours.
    started = open_checkpoint(start, named_tokenizer, batch) if start else None
    parts = _Parts(build, settings, tokenizer, keep)
    classifier = parts.classifier()
    unet, text_encoder, steps_done = started or (*parts.untrained(len(named_tokenizer)), 0)
    recipe = hashlib.sha256(repr((settings.denoiser, steps_done)).encode()).hexdigest()[:8]
    folder = parts.coded / f"denoiser-{recipe}"
    folder.mkdir(exist_ok=True)
    pipeline = build_pipeline(parts.vae, text_encoder, named_tokenizer, unet)

    def at_checkpoint(step: int) -> dict[str, object]:
        save_checkpoint(pipeline, folder / "checkpoint", step * batch)
        base_sheet(pipeline, parts.held_out).save(folder / f"step-{step:06d}.png")
        return judge_base(pipeline, classifier, parts.held_out, min(64, settings.judged))

    mixture = parts.mixture(named_tokenizer)
    models = (unet, text_encoder, named_tokenizer)
    pretrain_denoiser(*models, mixture, folder, settings.denoiser, at_checkpoint, steps_done)
    pipeline = publish_pipeline(output / "base", pipeline)
    if keep is None:
        parts.publish(ENCODERS, output / "encoders")
    elif keep.resolve() != output.resolve():
        shutil.copytree(keep / "encoders", output / "encoders", dirs_exist_ok=True)
    _judge(output, pipeline, classifier, parts.held_out, settings)


def pretrain_encoders(
    folder: Path, build: Path, settings: Pretraining, names: Iterable[Encoder] = ENCODERS
) -> None:
    """Train encoders for a finished base anew, and write them into its folder `encoders`.

    Args:
        folder: Folder with `base` and `encoders`. The classifier learns from the base's VAE too.
        build: Folder for work files.
        settings: Amounts of everything.
        names: Encoders to train; the others stay as they are.

    Raises:
        LoLDUError: If `folder` has no base.
    """
    if not (folder / "base").is_dir():
        raise LoLDUError(f"{folder} has no base; give a folder like pocket.")
    parts = _Parts(
        build / f"world-{settings.pictures}-{settings.held_out}",
        settings,
        build_tokenizer(),
        folder,
    )
    parts.publish(names, folder / "encoders")


def _judge(
    output: Path,
    pipeline: StableDiffusionPipeline,
    classifier: AttributeClassifier,
    held_out: Corpus,
    settings: Pretraining,
) -> None:
    """Write `base.json`, with digest, recipe and scores, and `base.png`, a sheet of samples."""
    record = {
        "weights": weights_digest(pipeline),
        "recipe": asdict(settings),
        "judgement": judge_base(pipeline, classifier, held_out, settings.judged),
        "individuals": judge_names(pipeline, classifier),
    }
    (output / "base.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    base_sheet(pipeline, held_out).save(output / "base.png")


class _Parts:
    """The corpora, and every part but the UNet: trained, loaded from work files, or kept."""

    def __init__(
        self, build: Path, settings: Pretraining, tokenizer: CLIPTokenizer, keep: Path | None
    ) -> None:
        self.build, self.settings, self.tokenizer, self.keep = build, settings, tokenizer, keep
        self.train = make_corpus(build, "train", settings.pictures, seed=0)
        self.held_out = make_corpus(build, "held_out", settings.held_out, seed=1_000_000)
        self.two = make_corpus(build, "two", settings.two, seed=4_000_000)

        self.vae, self.coded = self._normalized_vae()

    def _normalized_vae(self) -> tuple[AutoencoderKL, Path]:
        """Return the VAE and the folder of files that depend on it.

        It is normalized once and stored. The last bits of its statistics depend on the machine, and
        another machine must continue with the same latents.
        """
        settings = self.settings
        if self.keep:
            vae = AutoencoderKL.from_pretrained(self.keep / "base" / "vae").float().to(device())
        else:
            vae = pretrain_vae(
                self.train, self.held_out, self.build, settings.vae_steps, settings.vae_batch
            )
        coded = self.build / f"vae-{_digest(vae)}"
        coded.mkdir(exist_ok=True)
        stored = coded / "vae.safetensors"
        if not stored.exists():
            normalize_latents(vae, self.train.pixels(slice(0, 1000)).to(device()))
            save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, stored)
        vae.load_state_dict(load_file(stored))
        vae.register_to_config(scaling_factor=1.0)
        return vae.eval().requires_grad_(False), coded

    def mixture(self, tokenizer: CLIPTokenizer) -> list[tuple[Captioned, float]]:
        """Return the sources of the denoiser's training, each with its share."""

        def captioned(name: str, corpus: Corpus) -> Captioned:
            latents = latents_of(self.vae, corpus, self.coded, name)
            return Captioned(latents, corpus.token_ids(tokenizer))

        world = captioned("train", self.train)
        scenes = enumerate(self.train.scenes)
        patterned = [i for i, scene in scenes if scene.get("pattern", "plain") != "plain"]
        named = make_corpus(self.build, "named", self.settings.named, seed=2_000_000)
        shares = self.settings.denoiser
        return [
            (world, 1 - shares.patterned_share - shares.two_share - shares.named_share),
            (replace(world, rows=torch.tensor(patterned)), shares.patterned_share),
            (captioned("two", self.two), shares.two_share),
            (captioned("named", named), shares.named_share),
        ]

    def classifier(self) -> AttributeClassifier:
        if self.keep:
            return load_classifier(self.keep / "encoders" / "attributes.safetensors")
        return self.trained_classifier()

    def trained_classifier(self) -> AttributeClassifier:
        settings = self.settings
        one, two = (
            (corpus, _reconstructions(self.vae, corpus, self.coded, name, settings))
            for name, corpus in (("train", self.train), ("two", self.two))
        )
        steps, batch = settings.classifier_steps, settings.classifier_batch
        return pretrain_classifier(one, two, self.coded, steps, batch)

    def _clip(self, name: str, steps: int, seed: int) -> CLIPModel:
        ids, batch = self.train.token_ids(self.tokenizer), self.settings.clip_batch
        return pretrain_clip(
            name, self.train, ids, self.tokenizer, self.build, steps=steps, batch=batch, seed=seed
        )

    def clip(self) -> CLIPModel:
        return self._clip("clip", self.settings.clip_steps, seed=2)

    def untrained(self, vocabulary: int) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """Return a new UNet, and the text tower of a CLIP with embeddings for the names."""
        first = self._clip("text", self.settings.text_steps, seed=1)
        text_encoder = CLIPTextModel(first.config.text_config)
        text_encoder.load_state_dict(first.text_model.state_dict())
        torch.manual_seed(0)
        text_encoder.resize_token_embeddings(vocabulary, mean_resizing=False)
        unet = build_unet(self.settings.denoiser, text_encoder.config.hidden_size)
        return unet, text_encoder

    def dino(self) -> ViTModel:
        settings = self.settings
        pairs = make_corpus(self.build, "pairs", settings.paired, seed=3_000_000)
        return pretrain_dino(pairs, self.build, settings.dino_steps, settings.dino_batch)

    def publish(self, names: Iterable[Encoder], folder: Path) -> None:
        """Train encoders and write them into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name == "attributes":
                save_classifier(self.trained_classifier(), folder / "attributes.safetensors")
            elif name == "dino":
                publish_dino(folder / "dino", self.dino())
            else:
                publish_clip(folder / "clip", self.clip(), self.tokenizer)


def base_sheet(pipeline: StableDiffusionPipeline, held_out: Corpus) -> Image.Image:
    """Draw held-out prompts and individuals, each with seven samples and a true render."""
    asked = [(held_out.full_captions[i], Image.fromarray(held_out.pictures[i])) for i in range(8)]
    rng = random.Random(0)
    for scene in (named_scene(rng) for _ in range(3)):
        asked.append((full_caption(scene), render(scene, rng)))
    return sheet([(text, [*draw(pipeline, [text] * 7, seed=100), true]) for text, true in asked])


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def latents_of(
    vae: AutoencoderKL, corpus: Corpus, build: Path, name: str
) -> Float[Tensor, "n c h w"]:
    """Return the scaled latents (posterior means) of a corpus in half precision.

    They are computed once; an interrupted computation continues.
    """
    file, chunk = build / f"{name}-{len(corpus)}.f16", 64
    edge = SIZE_PX // 2 ** (len(vae.config.block_out_channels) - 1)
    shape = (vae.config.latent_channels, edge, edge)
    size = 2 * chunk * math.prod(shape)
    with file.open("ab") as stored:
        done = file.stat().st_size // size * chunk
        if file.stat().st_size < 2 * len(corpus) * math.prod(shape):
            stored.truncate(done // chunk * size)
            for i in tqdm(range(done, len(corpus), chunk), desc=f"encode {name}"):
                pixels = corpus.pixels(slice(i, i + chunk)).to(device())
                latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
                stored.write(latents.half().cpu().numpy().tobytes())
    return torch.from_numpy(np.fromfile(file, np.float16)).view(len(corpus), *shape)


def _reconstructions(
    vae: AutoencoderKL, corpus: Corpus, build: Path, name: str, settings: Pretraining
) -> Float[Tensor, "n 3 h w"]:
    count = min(settings.reconstructions, len(corpus))
    file = build / f"reconstructions-{name}-{count}.safetensors"
    if not file.exists():
        parts = [
            reconstruct(vae, corpus.pixels(slice(i, min(i + 64, count))).to(device())).half().cpu()
            for i in range(0, count, 64)
        ]
        save_file({"pixels": torch.cat(parts).contiguous()}, file)
    return load_file(file)["pixels"]
