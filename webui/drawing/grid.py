"""A grid of one concept: strengths across, steps of its training down, one prompt and one noise."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from loldu.pictures.grid import picture_grid
from webui.drawing.settings import Axes, Settings, png_bytes
from webui.drawing.studio import Picture
from webui.library.entry import Entry
from webui.served import address, in_cache

STRENGTHS = (0.4, 0.7, 1.0, 1.3)
"""As many as a batch has pictures, so that a row is drawn in one pass."""
_MOST_STEPS = 5
_SHOWN_PX, _SAVED_PX = 256, 160
_RANGE = f"Strengths from {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}"


@dataclass(frozen=True)
class Grid:
    """A grid, drawn row by row.

    Attributes:
        steps: Step of each row; None for the only row of a concept without saved steps.
        rows: Pictures of the rows that are drawn, one for each strength.
    """

    steps: Sequence[int | None]
    rows: tuple[tuple[Picture, ...], ...] = ()

    @property
    def settings(self) -> Settings:
        """Settings of the whole grid: those of its last step at strength 1, and the axes."""
        axes = Axes(STRENGTHS, tuple(step for step in self.steps if step is not None))
        return replace(self.rows[-1][STRENGTHS.index(1)].settings, grid=axes)

    def png(self) -> bytes:
        """Return the whole grid as one picture that holds its settings."""
        rows = [
            (_of_step(step), [picture.image for picture in row])
            for step, row in zip(self.steps, self.rows, strict=True)
        ]
        side = max(_SAVED_PX, max(self.rows[0][0].image.size))
        captions = [f"strength {strength:g}" for strength in STRENGTHS]
        return png_bytes(picture_grid(rows, captions, cell_px=side), self.settings)

    def html(self, saved: bytes | None = None) -> str:
        """Return the grid as a table of buttons; rows that are not drawn yet are empty.

        Args:
            saved: The whole grid as a PNG, which a link offers.
        """
        head = "".join(f'<th scope="col">{strength:g}</th>' for strength in STRENGTHS)
        rows = "".join(
            f'<tr><th scope="row">{_of_step(step)}</th>{self._cells(place, step)}</tr>'
            for place, step in enumerate(self.steps)
        )
        link = ""
        if saved is not None:
            href = address(in_cache(saved, "grid.png"))
            link = f'<p><a download="grid.png" href="{href}">Save the grid as one picture</a></p>'
        return (
            f'<table class="xy"><caption>Strength</caption><thead><tr>'
            f"<td></td>{head}</tr></thead><tbody>{rows}</tbody></table>{link}"
        )

    def _cells(self, place: int, step: int | None) -> str:
        if place >= len(self.rows):
            state = " drawing" * (place == len(self.rows))
            return f'<td><i class="to-come{state}"></i></td>' * len(STRENGTHS)
        return "".join(
            f'<td><button type="button" data-strength="{strength:g}" data-step="{step or ""}" '
            f'aria-pressed="false" aria-label="Strength {strength:g}, {_of_step(step)}">'
            f'<img alt="" src="{_shown(picture.image)}"></button></td>'
            for strength, picture in zip(STRENGTHS, self.rows[place], strict=True)
        )


def steps_of(entry: Entry, steps: Mapping[int, Entry]) -> dict[int | None, Entry]:
    """Return the concept at the steps that a grid shows; its own step is always among them.

    Args:
        entry: The concept.
        steps: The concept at its saved steps, oldest first.
    """
    known = [*steps]
    if len(known) < 2:
        return {None: entry}
    last = len(known) - 1
    rows = min(len(known), _MOST_STEPS) - 1
    shown = {known[round(place * last / rows)] for place in range(rows + 1)}
    own = next((step for step, at in steps.items() if at == entry), known[-1])
    if own not in shown:
        shown = shown - {min(shown, key=lambda step: abs(step - own))} | {own}
    return {step: steps[step] for step in sorted(shown)}


def describe_grid(entry: Entry | None, steps: Mapping[int, Entry]) -> str:
    """Return as HTML what the grid of a concept shows."""
    if entry is None:
        return '<p class="hint">Choose a concept first.</p>'
    rows = len(steps_of(entry, steps))
    said = f"{_RANGE} across, and {rows} of its {len(steps)} saved steps down."
    if rows == 1:
        said = f"{_RANGE}, in one row: this concept has no other saved steps of its training."
    return (
        f'<p class="hint">{said} All from the first seed. Click a picture to use its strength'
        f"{' and its step' * (rows > 1)}.</p>"
    )


def _of_step(step: int | None) -> str:
    return "as taught" if step is None else f"step {step}"


def _shown(image: Image.Image) -> str:
    """Return the address of a small copy."""
    copy, content = image.copy(), io.BytesIO()
    copy.thumbnail((_SHOWN_PX, _SHOWN_PX), Image.Resampling.LANCZOS)
    copy.save(content, "WEBP", quality=92)
    return address(in_cache(content.getvalue(), "cell.webp"))
