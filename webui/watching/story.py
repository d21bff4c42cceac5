"""The story of a training as HTML: the person's pictures, a filmstrip, and one frame large."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from loldu.pictures.folder import is_picture
from webui.engine.options import Asked
from webui.engine.progress import Progress
from webui.served import picture_address

_THUMB_PX, _LARGE_PX = 192, 1024
_MOST_OWN, _MOST_TO_COME = 8, 24


@dataclass(frozen=True)
class Shown:
    """The frame that is shown large.

    Attributes:
        step: Its step, or None before the first one.
        prompt: Index of its prompt.
    """

    step: int | None
    prompt: int


def film(asked: Asked, progress: Progress, shown: Shown, *, ends: bool) -> str:
    """Return the person's pictures, and a filmstrip with a frame for every validated step.

    Args:
        asked: Options of the training.
        progress: How far it is.
        shown: The frame that is shown large.
        ends: Whether it takes no further step, so that no frame is to come.
    """
    to_come = () if ends else _to_come(asked, progress)
    frames = _frames(progress, to_come, shown)
    strip = f'<div class="film" role="group" aria-label="Frames, by step">{frames}</div>'
    return _own(asked.pictures) + strip * bool(frames)


def prompts(asked: Asked, progress: Progress, shown: Shown) -> str:
    """Return a choice of the prompt that all frames show; prompts are escaped."""
    if len(asked.prompts) < 2 or not progress.base_pictures:
        return ""
    choices = "".join(
        f'<button type="button" data-prompt="{index}" '
        f'aria-pressed="{str(index == shown.prompt).lower()}">{escape(prompt)}</button>'
        for index, prompt in enumerate(asked.prompts)
    )
    return f'<div class="of-prompt" role="group" aria-label="Prompt of the frames">{choices}</div>'


def pair(asked: Asked, progress: Progress, shown: Shown) -> str:
    """Return the base's picture beside that of the shown step, from the same noise."""
    prompt = asked.prompts[shown.prompt] if shown.prompt < len(asked.prompts) else ""
    of_step = progress.pictures.get(shown.step, ()) if shown.step is not None else ()
    sides = (
        ("Before", "the base", _of_prompt(progress.base_pictures, shown.prompt)),
        ("After", f"step {shown.step}", _of_prompt(of_step, shown.prompt)),
    )
    figures = "".join(
        f"<figure>{_image(path, f'{prompt}, {name}', _LARGE_PX)}"
        f"<figcaption><b>{title}</b> {name}</figcaption></figure>"
        for title, name, path in sides
        if path is not None
    )
    return f'<div class="pair">{figures}</div>' if figures else ""


def _own(folder: Path | None) -> str:
    if folder is None or not folder.is_dir():
        return ""
    pictures = [path for path in sorted(folder.iterdir()) if is_picture(path)]
    images = "".join(_image(path, "", _THUMB_PX) for path in pictures[:_MOST_OWN])
    more = f"<span>and {len(pictures) - _MOST_OWN} more</span>" * (len(pictures) > _MOST_OWN)
    return f'<div class="own"><span>Your pictures</span>{images}{more}</div>' if images else ""


def _to_come(asked: Asked, progress: Progress) -> tuple[int, ...]:
    """Return the steps of the frames that are still to be drawn, if they are few."""
    if not asked.every:
        return ()
    last = max(progress.pictures, default=0)
    drawn = {*range(asked.every, progress.steps, asked.every), progress.steps}
    steps = sorted(step for step in drawn if step > last)
    return tuple(steps) if len(steps) <= _MOST_TO_COME else ()


def _frames(progress: Progress, to_come: Sequence[int], shown: Shown) -> str:
    """Return the base, every step that was drawn, and the steps to come."""
    base = _of_prompt(progress.base_pictures, shown.prompt)
    frames = f'<span class="frame">{_image(base, "", _THUMB_PX)}<b>base</b></span>' if base else ""
    for step, paths in sorted(progress.pictures.items()):
        picture = _of_prompt(paths, shown.prompt)
        pressed = str(step == shown.step).lower()
        frames += (
            f'<button type="button" class="frame" data-step="{step}" aria-pressed="{pressed}" '
            f'aria-label="Step {step}">{_image(picture, "", _THUMB_PX)}<b>{step}</b></button>'
        )
    empty = '<span class="frame to-come"><i></i><b>{}</b></span>'
    return frames + "".join(map(empty.format, to_come))


def _of_prompt(paths: Sequence[Path], prompt: int) -> Path | None:
    return paths[prompt] if prompt < len(paths) else None


def _image(path: Path | None, alt: str, side_px: int) -> str:
    source = picture_address(path, side_px) if path else ""
    return f'<img alt="{escape(alt)}" src="{escape(source)}">' if source else "<i></i>"
