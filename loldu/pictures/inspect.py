"""Inspect pictures before training: measure each, and warn of what may spoil the result."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loldu.pictures.folder import CaptionedImage
from loldu.pictures.mask import load_mask
from loldu.pictures.open import load_image
from loldu.prompts import common_words, lacks_word, likely_token_and_class, says_more

FEW_PICTURES = 3
CROPPED_AWAY = 0.6
"""Share of a picture that a crop should keep; a square keeps 0.67 of 3:2 and 0.56 of 16:9."""
ENLARGED = 1.25
CUT_SUBJECT = 0.8
BLURRY = 80.0
"""Sharpness below which a picture looks blurred at full size.

Photographs in focus have 250 and more, the same with a Gaussian blur of 2 pixels 50 or less.
"""
NEARLY_THE_SAME = 0.96
"""Likeness above which two pictures differ only in encoding, size, brightness or a small crop.

Such copies have 0.97 and more, different photographs up to 0.93, pictures of one subject in
different places up to 0.88.
"""
PLAIN, SAME_COLOR = 0.06, 0.08
"""Spread of the colors along the edges of a plain background, and greatest difference between the
mean colors of two backgrounds that look the same; colors are between 0 and 1."""
_TILES = 8
_THUMBNAIL_PX, _WINDOW_PX = 64, range(56, 65, 2)
_SIGNATURE_PX = 16


@dataclass(frozen=True)
class TrainingSetup:
    """The options of a training that decide which warnings apply.

    Attributes:
        resolution: Side of the square crops in pixels.
        center_crop: Whether the middle of a picture is cropped, or random squares.
        instance_prompt: Prompt of pictures without a caption of their own.
        class_prompts: Prompts of the class pictures.
        token: The rare token, if it is given.
        placeholder_token: The new word that is taught, if there is one.
        aspect_buckets: Whether pictures keep their shape, so that no crop cuts anything off.
    """

    resolution: int
    center_crop: bool = True
    instance_prompt: str | None = None
    class_prompts: tuple[str, ...] = ()
    token: str | None = None
    placeholder_token: str | None = None
    aspect_buckets: bool = False


@dataclass(frozen=True)
class Finding:
    """Measurements of one picture; shares are between 0 and 1.

    Attributes:
        picture: The file, its caption and its mask.
        size: Width and height in pixels, upright.
        kept: Share of the picture inside one square crop.
        enlarged: The resolution divided by the shorter side.
        sharpness: Sharpness of the middle square at the training resolution.
        marked: Share of the picture that its mask marks; None without a mask.
        marked_kept: Share of the marked area inside the middle crop; None without a mask.
        signature: Fingerprint that finds near copies.
        background: Mean color along the edges if they are of one color, else None.
    """

    picture: CaptionedImage
    size: tuple[int, int]
    kept: float
    enlarged: float
    sharpness: float
    marked: float | None
    marked_kept: float | None
    signature: Float[np.ndarray, "crops values"]
    background: Float[np.ndarray, "3"] | None

    @property
    def name(self) -> str:
        """File name."""
        return self.picture.path.name


def report(pictures: Sequence[CaptionedImage], folder: Path, setup: TrainingSetup) -> None:
    """Write a table of the pictures of a folder to stderr, and the warnings below it."""
    findings = [examine(picture, setup.resolution) for picture in pictures]
    if setup.aspect_buckets:
        findings = [
            replace(each, kept=1.0, marked_kept=None if each.marked is None else 1.0)
            for each in findings
        ]
    console = Console(stderr=True, highlight=False)
    heading = f"{_count(len(findings), 'picture')} at {setup.resolution} pixels, from {folder}"
    console.print(Text(heading, "bold"), soft_wrap=True)
    alike = look_alikes(findings)
    console.print(table(findings, alike))
    found = list(warnings(findings, alike, setup))
    for warning in found:
        console.print(Text.assemble(("! ", "bold yellow"), warning), soft_wrap=True)
    if not found:
        console.print(Text("These pictures look fine.", style="green"))


def examine(picture: CaptionedImage, resolution: int, image: Image.Image | None = None) -> Finding:
    """Measure one picture; `image` is its content, if it is not to be read from the file.

    Raises:
        LoLDUError: If the picture or its mask cannot be read.
    """
    image = image or load_image(picture.path)
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    middle = (left, top, left + side, top + side)
    square = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=middle)
    marked = marked_kept = None
    if picture.mask is not None:
        mask = load_mask(picture.mask, image.size)
        shares = np.asarray(mask, dtype=np.float64) / 255
        marked = float(shares.mean())
        marked_kept = float(np.asarray(mask.crop(middle)).sum() / 255 / shares.sum())
    return Finding(
        picture=picture,
        size=image.size,
        kept=side / max(image.size),
        enlarged=resolution / side,
        sharpness=sharpness(square),
        marked=marked,
        marked_kept=marked_kept,
        signature=signature(image),
        background=plain_background(image),
    )


def warnings(
    findings: Sequence[Finding], alike: Sequence[Sequence[Finding]], setup: TrainingSetup
) -> Iterator[str]:
    """Yield one line, with a cure, for each thing that may spoil the training."""
    if len(findings) < FEW_PICTURES:
        yield (
            f"Only {_count(len(findings), 'picture')}: 3 to 5, from several sides and before "
            "different backgrounds, teach the subject and not one view of it."
        )
    if alike:
        groups = "; ".join(" = ".join(finding.name for finding in group) for group in alike)
        yield (
            f"Nearly the same picture: {groups}; keep one of each, or its pose and background "
            "become part of the concept."
        )
    if blurred := [finding.name for finding in findings if finding.sharpness < BLURRY]:
        yield (
            f"Blurred at {setup.resolution} pixels: {', '.join(blurred)}; the concept learns the "
            "blur too, so use sharper ones."
        )
    if cut := [f"{f.name} ({f.kept:.0%} kept)" for f in findings if f.kept < CROPPED_AWAY]:
        other = "use --no_center_crop" if setup.center_crop else "check what is left of it"
        yield f"Very oblong: {', '.join(cut)}; crop to the subject yourself, or {other}."
    if small := [f"{f.name} ({f.enlarged:.1f} x)" for f in findings if f.enlarged > ENLARGED]:
        yield (
            f"Enlarged, so without fine detail: {', '.join(small)}; use larger ones, or a lower "
            "--resolution if the base can."
        )
    yield from _mask_warnings(findings, setup)
    yield from _caption_warnings(findings, setup)


def look_alikes(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return groups of pictures in which each is nearly the same as another."""
    group_of = list(range(len(findings)))
    for first, second in combinations(range(len(findings)), 2):
        alike = likeness(findings[first].signature, findings[second].signature)
        if alike >= NEARLY_THE_SAME:
            joined, kept = group_of[second], group_of[first]
            group_of = [kept if group == joined else group for group in group_of]
    return [
        [finding for finding, own in zip(findings, group_of, strict=True) if own == group]
        for group, size in Counter(group_of).items()
        if size > 1
    ]


def table(findings: Sequence[Finding], alike: Sequence[Sequence[Finding]]) -> Table:
    """Return the findings as a table; values behind a warning are yellow."""
    grid = Table(
        caption=f"sharpness: under {BLURRY:.0f} is blurred",
        caption_justify="left",
        box=None,
        header_style="",
    )
    grid.add_column("picture", overflow="fold")
    for heading in ("size", "crop keeps", "scaled", "sharpness", "mask"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("caption")
    copies = {finding.name for group in alike for finding in group}
    for finding in findings:
        width, height = finding.size
        repeats = f" x{finding.picture.repeats}" if finding.picture.repeats > 1 else ""
        lost = finding.marked_kept is not None and finding.marked_kept < CUT_SUBJECT
        grid.add_row(
            _cell(finding.name + repeats, finding.name in copies),
            f"{width} x {height}",
            _cell(f"{finding.kept:.0%}", finding.kept < CROPPED_AWAY),
            _cell(f"{finding.enlarged:.2g} x", finding.enlarged > ENLARGED),
            _cell(f"{finding.sharpness:.0f}", finding.sharpness < BLURRY),
            _cell("-" if finding.marked is None else f"{finding.marked:.0%}", lost),
            Text(finding.picture.caption),
        )
    return grid


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian in the sharpest tenth of a picture.

    Only a tenth counts, because a sharp subject before a blurred background is a good picture.

    Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000 (the variance).
    """
    gray = np.asarray(image.convert("L"), dtype=np.float64)
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    squares = (around - 4 * gray[1:-1, 1:-1]) ** 2  # a Laplacian's mean is 0
    tiles = min(_TILES, *squares.shape)
    height, width = (side // tiles for side in squares.shape)
    cut = squares[: height * tiles, : width * tiles].reshape(tiles, height, tiles, width)
    return float(np.quantile(cut.mean(axis=(1, 3)), 0.9))


def signature(image: Image.Image) -> Float[np.ndarray, "crops values"]:
    """Return thumbnails of a picture's crops, and last of the whole, as centered unit vectors.

    The usual perceptual hashes fail here: a crop by a twentieth changes as many of their bits as
    there are between two pictures of one subject.
    """
    small = image.resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    crops = [
        small.resize(
            (_SIGNATURE_PX, _SIGNATURE_PX),
            Image.Resampling.BILINEAR,
            box=(x, y, x + width, y + height),
        )
        for width in _WINDOW_PX
        for height in _WINDOW_PX
        for x in range(0, _THUMBNAIL_PX - width + 1, 2)
        for y in range(0, _THUMBNAIL_PX - height + 1, 2)
    ]
    colours = np.stack([np.asarray(crop, dtype=np.float32) for crop in crops])
    values = (colours - colours.mean(axis=(1, 2), keepdims=True)).reshape(len(crops), -1)
    return values / np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-6)


def plain_background(image: Image.Image) -> Float[np.ndarray, "3"] | None:
    """Return the mean color along the edges of a picture, or None if they are not of one color."""
    small = image.convert("RGB").resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    colors = np.asarray(small, dtype=np.float32) / 255
    edge, rest = _THUMBNAIL_PX // 16, slice(_THUMBNAIL_PX // 16, -(_THUMBNAIL_PX // 16))
    parts = colors[:edge], colors[-edge:], colors[rest, :edge], colors[rest, -edge:]
    ring = np.concatenate([part.reshape(-1, 3) for part in parts])
    return ring.mean(0) if ring.std(0).max() < PLAIN else None


def likeness(
    first: Float[np.ndarray, "crops values"], second: Float[np.ndarray, "crops values"]
) -> float:
    """Return the best correlation of one picture with a crop of the other, by signature."""
    return float(max((first @ second[-1]).max(), (second @ first[-1]).max()))


def _cell(text: str, warned: bool) -> Text:
    return Text(text, style="yellow" if warned else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _mask_warnings(findings: Sequence[Finding], setup: TrainingSetup) -> Iterator[str]:
    cut = [
        f"{finding.name} ({finding.marked_kept:.0%} kept)"
        for finding in findings
        if finding.marked_kept is not None and finding.marked_kept < CUT_SUBJECT
    ]
    if cut and setup.center_crop:
        yield (
            f"The crop cuts into what the mask marks: {', '.join(cut)}; crop to the subject "
            "yourself, or use --no_center_crop."
        )
    bare = [finding.name for finding in findings if finding.marked is None]
    if 0 < len(bare) < len(findings):
        yield (
            f"Without a mask, unlike the others: {', '.join(bare)}; the concept learns their "
            "backgrounds in full, so add a mask for each."
        )


def _caption_warnings(findings: Sequence[Finding], setup: TrainingSetup) -> Iterator[str]:
    pictures = [finding.picture for finding in findings]
    if word := setup.placeholder_token:
        lacking = [p.path.name for p in pictures if word not in p.caption.split()]
        if lacking:
            yield f"The word {word} is missing in the caption of {', '.join(lacking)}: add it."
        return
    prompt = setup.instance_prompt or common_words([picture.caption for picture in pictures])
    token, class_name = likely_token_and_class(prompt, setup.class_prompts, setup.token)
    if token is None:
        yield (
            f'There is no rare token in "{prompt}": without one, such as sks, the concept '
            "replaces what the words meant before."
        )
        return
    if class_name is None:
        yield (
            f'No class follows {token} in "{prompt}": say what it is, such as "a photo of {token} '
            'dog", and the model starts from what it knows of dogs.'
        )
    for kind, name, every, why in (
        ("token", token, True, "add it, because the pictures give it its meaning"),
        # Of a class such as "teddy bear on grass", one of its words is enough.
        ("class", class_name, False, "add it, so that the model starts from what it knows"),
    ):
        lacking = [p.path.name for p in pictures if lacks_word(p.caption, name or "", every=every)]
        if lacking:
            yield f'The {kind} "{name}" is missing in the caption of {", ".join(lacking)}: {why}.'
    yield from _background_warnings(findings, token, class_name or "")


def _background_warnings(findings: Sequence[Finding], token: str, class_name: str) -> Iterator[str]:
    """Yield a line if captions leave out what the concept would then learn with its subject."""
    bare = [
        finding
        for finding in findings
        if not lacks_word(finding.picture.caption, token, every=True)
        and not says_more(finding.picture.caption, token, class_name)
    ]
    if 0 < len(bare) < len(findings) / 2:
        names = ", ".join(finding.name for finding in bare)
        yield (
            f"No background in the caption of {names}, unlike the others: say where it is, as in "
            f'"{token} {class_name or "dog"} on grass", or the concept learns it too.'
        )
    grounds = [finding.background for finding in bare if finding.background is not None]
    if len(grounds) == len(findings) > 1 and np.ptp(grounds, axis=0).max() < SAME_COLOR:
        yield (
            "All pictures have the same plain background, and their captions do not name it: say "
            f'it, as in "{token} {class_name or "dog"} on a white background", or add pictures '
            "before others, or the concept learns it too."
        )
