"""A look at the pictures before they are trained on: what was found, what is wrong, what cures it.

python -m trainer --doctor_only --instance_data_dir pictures \
        --instance_prompt "a photo of sks dog"
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loldu.pictures.folder import CaptionedImage, check_images
from loldu.pictures.mask import load_mask
from loldu.pictures.measures import BLURRY, NEARLY_THE_SAME, likeness, sharpness, signature
from loldu.pictures.open import load_image
from loldu.prompts import class_after, token_and_class
from trainer.options.concepts import concept_configs
from trainer.options.config import Config, InstanceConfig, PriorConfig
from trainer.training.instances import find_all_instances, own_class_images

FEW_PICTURES = 3
CROPPED_AWAY = 0.6
"""Of a picture's area; 3:2 keeps 0.67 in a square, 16:9 keeps 0.56."""
ENLARGED = 1.25
CUT_SUBJECT = 0.8


@dataclass(frozen=True)
class Finding:
    """What is seen in one picture; shares are between 0 and 1.

    Attributes:
        picture: the file, its caption and its mask.
        size: width and height in pixels, upright.
        kept: share of the picture that one square crop keeps.
        enlarged: the resolution over the shorter side.
        sharpness: of the middle at the training resolution.
        marked: share of the picture that its mask marks, if it has one.
        marked_kept: share of what is marked that the crop of the middle keeps.
        signature: what it is told from other pictures by.
    """

    picture: CaptionedImage
    size: tuple[int, int]
    kept: float
    enlarged: float
    sharpness: float
    marked: float | None
    marked_kept: float | None
    signature: Float[np.ndarray, "crops values"]

    @property
    def name(self) -> str:
        """The file's name."""
        return self.picture.path.name


def diagnose(config: Config) -> None:
    """Find, examine and report on the pictures of a run that is not to take place.

    Raises:
        LoLDUError: for what would keep the run from starting.
    """
    configs = concept_configs(config)
    for name, pictures in find_all_instances(configs).items():
        report(pictures, configs[name].instance, configs[name].prior)


def report(pictures: Sequence[CaptionedImage], options: InstanceConfig, prior: PriorConfig) -> None:
    """Write a table of the pictures to stderr, and below it what may spoil the training.

    Raises:
        LoLDUError: when one of the person's own class pictures cannot be used.
    """
    if prior.with_prior_preservation:
        check_images(own_class_images(prior), options.resolution)
    findings = [examine(picture, options.resolution) for picture in pictures]
    console = Console(stderr=True, highlight=False)
    heading = f"at {options.resolution} pixels, from {options.instance_data_dir}"
    console.print(Text(f"{_count(len(findings), 'picture')} {heading}", "bold"), soft_wrap=True)
    alike = look_alikes(findings)
    console.print(table(findings, alike))
    warned = list(warnings(findings, alike, options, prior))
    for warning in warned:
        console.print(Text.assemble(("! ", "bold yellow"), warning), soft_wrap=True)
    if not warned:
        console.print(Text("Nothing speaks against them.", style="green"))


def examine(picture: CaptionedImage, resolution: int, image: Image.Image | None = None) -> Finding:
    """Measure one picture, in its file unless it is given."""
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
    )


def warnings(
    findings: Sequence[Finding],
    alike: Sequence[Sequence[Finding]],
    options: InstanceConfig,
    prior: PriorConfig,
) -> Iterator[str]:
    """What may spoil the training, a line each, with its cure."""
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
            f"Blurred at {options.resolution} pixels: {', '.join(blurred)}; blur is learned like "
            "anything else, so take sharper ones."
        )
    if cut := [f"{f.name} ({f.kept:.0%} kept)" for f in findings if f.kept < CROPPED_AWAY]:
        other = "use --no_center_crop" if options.center_crop else "check what is left of it"
        yield f"Very oblong: {', '.join(cut)}; crop to the subject yourself, or {other}."
    if small := [f"{f.name} ({f.enlarged:.1f} x)" for f in findings if f.enlarged > ENLARGED]:
        yield (
            f"Enlarged, so without fine detail: {', '.join(small)}; use larger ones, or a lower "
            "--resolution if the base can."
        )
    yield from _mask_warnings(findings, options)
    yield from _caption_warnings([finding.picture for finding in findings], options, prior)


def look_alikes(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Groups of pictures in which each is nearly the same as another."""
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
    """The findings as a table, with what gave rise to a warning in yellow."""
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


def _cell(text: str, warned: bool) -> Text:
    return Text(text, style="yellow" if warned else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _mask_warnings(findings: Sequence[Finding], options: InstanceConfig) -> Iterator[str]:
    cut = [
        f"{finding.name} ({finding.marked_kept:.0%} kept)"
        for finding in findings
        if finding.marked_kept is not None and finding.marked_kept < CUT_SUBJECT
    ]
    if cut and options.center_crop:
        yield (
            f"The crop cuts into what the mask marks: {', '.join(cut)}; crop to the subject "
            "yourself, or use --no_center_crop."
        )
    bare = [finding.name for finding in findings if finding.marked is None]
    if 0 < len(bare) < len(findings):
        yield (
            f"Without a mask, unlike the others: {', '.join(bare)}; their backgrounds are learned "
            "in full, so give them one too."
        )


def _caption_warnings(
    pictures: Sequence[CaptionedImage], options: InstanceConfig, prior: PriorConfig
) -> Iterator[str]:
    if word := options.placeholder_token:
        lacking = [p.path.name for p in pictures if word not in p.caption.split()]
        if lacking:
            yield f"The word {word} is missing in the caption of {', '.join(lacking)}: add it."
        return
    captions = [picture.caption for picture in pictures]
    prompt = options.instance_prompt or _in_common(captions)
    token, class_name = likely_token_and_class(prompt, prior.class_prompt, options.token)
    if token is None:
        yield (
            f'There is no rare token in "{prompt}": without one, such as sks, the concept takes '
            "the place of what the words meant."
        )
        return
    if class_name is None:
        yield (
            f'No class follows {token} in "{prompt}": say what it is, such as "a photo of {token} '
            'dog", and the model starts from what it knows of dogs.'
        )
    for kind, name, has, why in (
        ("token", token, all, "add it, for it is what the pictures should come to mean"),
        # Of a class such as "teddy bear on grass", one of its words will do.
        ("class", class_name, any, "add it, so that the model starts from what it knows"),
    ):
        words = _telling(name or "")
        lacking = [
            picture.path.name
            for picture in pictures
            if words and not has(word in _words(picture.caption) for word in words)
        ]
        if lacking:
            yield f'The {kind} "{name}" is missing in the caption of {", ".join(lacking)}: {why}.'


def likely_token_and_class(
    prompt: str, class_prompts: Sequence[str], token: str | None = None
) -> tuple[str | None, str | None]:
    """The rare token of a prompt and its class: as given, or as the prompts tell, or likely.

    A likely token is the first word that says something and is in no class prompt; its class is
    the next word after it, of the class prompts if they have one of the words that follow.
    """
    if token is not None:
        return token, class_after(*(" ".join(_words(text)) for text in (prompt, token))) or None
    if told := token_and_class(prompt, class_prompts):
        return told
    ordinary = {word for class_prompt in class_prompts for word in _words(class_prompt)}
    telling = _telling(prompt)
    places = [place for place, word in enumerate(telling) if word not in ordinary]
    if not places:
        return None, None
    after = telling[places[0] + 1 :]
    known = [word for word in after if word in ordinary]
    return telling[places[0]], next(iter(known or after), None)


def _in_common(captions: Sequence[str]) -> str:
    """The words of the first caption that most captions have."""
    count = Counter(word for caption in captions for word in set(_words(caption)))
    return " ".join(word for word in _words(captions[0]) if count[word] > len(captions) / 2)


def _telling(text: str) -> list[str]:
    return [word for word in _words(text) if not _SAYS_LITTLE.fullmatch(word)]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:[-'’_][^\W_]+)*", text.lower())


_SAYS_LITTLE = re.compile(
    "an?|the|my|this|that|of|in|on|at|with|and|by|from|photo(graph)?|picture|image|close-up|"
    "portrait|painting|drawing|rendering|illustration"
)
"""A word of a prompt that names neither a concept nor a class."""
