"""Encode pictures and prompts once, so that only the network stays on the device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from loldu.base.families import family_of
from loldu.base.family import Conditioning
from loldu.errors import LoLDUError
from loldu.pictures.captions import tag_variant
from loldu.pictures.crop import Framing, load_views
from loldu.pictures.folder import CaptionedImage
from loldu.pictures.mask import loss_weights, marked_shares
from trainer.options.captions import CaptionsConfig
from trainer.options.config import InstanceConfig

ENCODED_AT_ONCE = 8
TAG_VARIANTS, ALL_VARIANTS = 32, 512
"""Variants of each caption, and about the most of all captions together.

They are drawn once, because encoded prompts are cached: one takes 240 KB with SD v1.5.
"""
_TAGS = 11
"""Stream of the seed for the variants."""


@dataclass(frozen=True)
class Cache:
    """Encoded pictures and prompts of a concept.

    Mean and standard deviation are kept instead of one sample, so that each step draws its own.

    Attributes:
        mean: Mean of the VAE's posterior for every view of every picture, scaled for the network.
        std: Standard deviation of the same posterior.
        conditioning: Encoded prompts.
        prompt_of_view: Row of `conditioning` for every view.
        instances: Views of each concept picture, which appears once per repeat.
        classes: Views of each class picture.
        weights: Weights of the squared errors, if there is a mask.
        marked: Share of every latent that is trained on its picture; the base's own answer is the
            target of the rest. None if all is.
        held_out: Views of each picture that is measured and not trained on.
        variants: For every view, rows of `conditioning` with its caption's variants, if captions
            change.
        empty: Row of the empty prompt, if captions are dropped.
        descriptions: How every view was cropped, if the network reads that.
    """

    mean: Float[Tensor, "views c h w"]
    std: Float[Tensor, "views c h w"]
    conditioning: Conditioning
    prompt_of_view: Int[Tensor, " views"]
    instances: list[range]
    classes: list[range]
    weights: Float[Tensor, "views 1 h w"] | None = None
    marked: Float[Tensor, "views 1 h w"] | None = None
    held_out: list[range] = field(default_factory=list[range])
    variants: list[list[int]] | None = None
    empty: int | None = None
    descriptions: Conditioning = field(default_factory=dict[str, Tensor])

    def conditioning_of(
        self, prompts: Int[Tensor, " rows"], views: Int[Tensor, " rows"]
    ) -> Conditioning:
        """Return the network's conditioning for rows with these prompts and views."""
        of_prompts = {name: tensor[prompts] for name, tensor in self.conditioning.items()}
        return of_prompts | {name: tensor[views] for name, tensor in self.descriptions.items()}

    def marked_of(self, views: Int[Tensor, " rows"]) -> Float[Tensor, "rows 1 h w"]:
        """Return the share of every latent that is trained on its picture, for rows of views."""
        if self.marked is not None:
            return self.marked[views]
        return self.mean.new_ones(len(views), 1, *self.mean.shape[-2:])


@torch.no_grad()
def build_cache(
    pipeline: DiffusionPipeline,
    instances: Sequence[CaptionedImage],
    classes: Sequence[CaptionedImage],
    options: InstanceConfig,
    *,
    seed: int,
    held_out: Sequence[CaptionedImage] = (),
    captions: CaptionsConfig | None = None,
    shape: tuple[int, int] | None = None,
) -> Cache:
    """Encode every view of every picture in fp32, and every distinct prompt, each once.

    Args:
        pipeline: The base.
        instances: Pictures of the concept.
        classes: Class pictures.
        options: How pictures are cropped and masked.
        seed: Seed of the crops and of the captions' variants.
        held_out: Pictures of the concept that are measured and not trained on.
        captions: How captions of the concept change; not at all by default.
        shape: Width and height of the views; a square by default.

    Raises:
        LoLDUError: If a picture cannot be used, or the VAE returns inf or NaN.
    """
    family, pictures = family_of(pipeline), [*instances, *classes, *held_out]
    captions = captions or CaptionsConfig()
    prompts = sorted({picture.caption for picture in pictures})
    variants = caption_variants([picture.caption for picture in instances], captions, seed)
    extra = [variant for own in variants or () for variant in own]
    extra += [""] if captions.caption_dropout else []
    all_prompts = [*dict.fromkeys([*prompts, *extra])]
    row_of = {prompt: row for row, prompt in enumerate(all_prompts)}
    mean, std, owners, masks, places = _encode_views(pipeline, pictures, options, seed, shape)
    ranges = [
        range(owners.index(index), owners.index(index) + owners.count(index))
        for index in range(len(pictures))
    ]
    own_texts = [variants[index] for index in owners if index < len(variants)] if variants else []
    size = mean.shape[-2], mean.shape[-1]
    weights = loss_weights(masks, ranges, size, options.unmasked_weight)
    from_base = options.unmasked_target == "base" and any(mask is not None for mask in masks)
    descriptions = family.describe_views(places)
    return Cache(
        mean=mean,
        std=std,
        conditioning=family.encode_text(pipeline, all_prompts),
        prompt_of_view=torch.tensor(
            [row_of[pictures[owner].caption] for owner in owners], device=mean.device
        ),
        instances=_repeated(instances, ranges[: len(instances)]),
        classes=_repeated(classes, ranges[len(instances) : len(instances) + len(classes)]),
        weights=None if weights is None else weights.to(mean.device),
        marked=marked_shares(masks, size).to(mean.device) if from_base else None,
        held_out=ranges[len(instances) + len(classes) :],
        variants=[[row_of[text] for text in texts] for texts in own_texts] or None,
        empty=row_of[""] if captions.caption_dropout else None,
        descriptions={name: rows.to(mean.device) for name, rows in descriptions.items()},
    )


def _encode_views(
    pipeline: DiffusionPipeline,
    pictures: Sequence[CaptionedImage],
    options: InstanceConfig,
    seed: int,
    shape: tuple[int, int] | None,
) -> tuple[Tensor, Tensor, list[int], list[Tensor | None], list[Framing]]:
    """Return mean and deviation of every view's latents, and its picture, mask and framing."""
    family = family_of(pipeline)
    owners: list[int] = []
    masks: list[Tensor | None] = []
    places: list[Framing] = []
    moments: list[tuple[Tensor, Tensor]] = []
    waiting: list[Tensor] = []
    for view in load_views(
        pictures,
        options.resolution,
        center_crop=options.center_crop,
        random_flip=options.random_flip,
        seed=seed,
        shape=shape,
    ):
        owners.append(view.index)
        masks.append(view.mask)
        places.append(view.framing)
        waiting.append(view.pixels)
        if len(waiting) == ENCODED_AT_ONCE:
            moments.append(family.encode_pictures(pipeline, torch.stack(waiting)))
            waiting.clear()
    if waiting:
        moments.append(family.encode_pictures(pipeline, torch.stack(waiting)))
    mean, std = (torch.cat(part) for part in zip(*moments, strict=True))
    _refuse_non_finite(mean + std, [pictures[owner] for owner in owners])
    return mean, std, owners, masks, places


def caption_variants(
    texts: Sequence[str], captions: CaptionsConfig, seed: int
) -> list[list[str]] | None:
    """Return the variants of every caption, or None if tags stay as they are.

    A caption without any other variant has itself.
    """
    if not (captions.shuffle_tags or captions.tag_dropout):
        return None
    count = max(4, min(TAG_VARIANTS, ALL_VARIANTS // max(1, len(texts))))
    return [
        [
            tag_variant(
                text,
                np.random.default_rng([seed, _TAGS, index, number]),
                shuffle=captions.shuffle_tags,
                dropout=captions.tag_dropout,
                keep=captions.keep_tags,
            )
            for number in range(count)
        ]
        for index, text in enumerate(texts)
    ]


@contextmanager
def on_device(pipeline: DiffusionPipeline, device: torch.device) -> Iterator[None]:
    """Bring VAE and text encoders to the network's device for a while, in their own dtypes."""
    family = family_of(pipeline)
    for name in (family.vae, *family.text_encoders):
        getattr(pipeline, name).to(device)
    try:
        yield
    finally:
        leave_device(pipeline)


def leave_device(pipeline: DiffusionPipeline) -> None:
    """Send to main memory what no step needs: the VAE, and text encoders that are not trained."""
    family = family_of(pipeline)
    for name in (family.vae, *family.text_encoders):
        part = getattr(pipeline, name)
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.to("cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _repeated(pictures: Sequence[CaptionedImage], views: list[range]) -> list[range]:
    return [
        own for picture, own in zip(pictures, views, strict=True) for _ in range(picture.repeats)
    ]


def _refuse_non_finite(latents: Tensor, pictures: Sequence[CaptionedImage]) -> None:
    finite = latents.isfinite().flatten(1).all(dim=1).tolist()
    for picture, good in zip(pictures, finite, strict=True):
        if not good:
            raise LoLDUError(
                f"The VAE returns inf or NaN for {picture.path}; it is damaged or overflows: give "
                "another one with --vae."
            )
