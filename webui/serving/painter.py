"""Draw requests with different concepts in as few passes of one base as possible."""

import logging
from collections.abc import Sequence

from loldu import read_concept
from loldu.base.config import BaseModelConfig
from loldu.base.record import base_options
from loldu.errors import LoLDUError
from webui.drawing.model import Model, Use
from webui.drawing.studio import Picture, Task, draw_batch
from webui.library.entry import Entry, named_errors
from webui.serving.order import Ask
from webui.serving.shelf import Shelf

logger = logging.getLogger("webui")

Outcome = Picture | LoLDUError


class Painter:
    """A resident base with the concepts that were used last.

    Pictures with equal steps, guidance and size share a batch; prompts, negative prompts, seeds,
    concepts and strengths may differ. Every picture has its own noise, and its row of the batch has
    its own concepts. So it is the picture that is drawn alone, up to rounding: matrix products of
    another size round differently, which moves a channel of a pixel by one level of 255 at most on
    the tested bases in fp32.
    """

    def __init__(
        self, options: BaseModelConfig, device: str, shelf: Shelf, most_resident: int = 256
    ) -> None:
        """Load a base.

        Args:
            options: The base and how to read it.
            device: Its device.
            shelf: The concepts.
            most_resident: Concepts that stay loaded; those that were not used longest leave first.

        Raises:
            LoLDUError: If the base does not exist, or cannot be used.
        """
        self._shelf = shelf
        self._options = options
        self._model = Model(options, device, most_resident)
        self._fitting: dict[tuple[str, int], None] = {}

    def draw(self, asks: Sequence[Ask]) -> list[Outcome]:
        """Draw pictures; what is wrong with one of them does not affect the others.

        Returns:
            For each, the picture or the reason why there is none.
        """
        outcomes: dict[int, Outcome] = {}
        uses: dict[int, list[Use]] = {}
        batches: dict[tuple[object, ...], list[int]] = {}
        for place, ask in enumerate(asks):
            try:
                uses[place] = [
                    Use(self._fit(self._shelf.get(name)), strength)
                    for name, strength in ask.concepts
                ]
            except LoLDUError as error:
                outcomes[place] = error
                continue
            alike = ask.num_inference_steps, ask.guidance_scale, ask.resolution
            batches.setdefault(alike, []).append(place)
        for places in batches.values():
            drawn = self._draw([asks[place] for place in places], [uses[place] for place in places])
            outcomes |= dict(zip(places, drawn, strict=True))
        return [outcomes[place] for place in range(len(asks))]

    def _draw(self, asks: Sequence[Ask], rows: Sequence[Sequence[Use]]) -> list[Outcome]:
        """Draw a batch, or each half of it where the whole does not fit or has a bad concept."""
        first = asks[0]
        task = Task(
            tuple(ask.prompt for ask in asks),
            tuple(ask.seed for ask in asks),
            "",
            first.num_inference_steps,
            first.guidance_scale,
            first.resolution,
        )
        try:
            negatives = [ask.negative_prompt for ask in asks]
            return [*draw_batch(self._model, task, rows, negatives)]
        except LoLDUError as error:
            if len(asks) == 1:
                return [error]
            logger.info("A batch of %d is drawn in halves: %s", len(asks), error)
        half = len(asks) // 2
        return self._draw(asks[:half], rows[:half]) + self._draw(asks[half:], rows[half:])

    def _fit(self, entry: Entry) -> Entry:
        """Return a concept after checking that this base is read as in its training.

        Raises:
            ConceptError: If its file is damaged.
            LoLDUError: If the server reads the base in another way.
        """
        with named_errors(entry.path, entry.name):
            path = entry.path
            key = str(path), path.stat().st_mtime_ns if path.is_file() else 0
            if key not in self._fitting:
                place = self._options.pretrained_model_name_or_path
                trained = base_options(read_concept(path), path, place)
                for name in ("prediction_type", "clip_skip"):
                    wanted, here = getattr(trained, name), getattr(self._options, name)
                    if wanted is not None and wanted != here:
                        raise LoLDUError(
                            f"{entry.name} was trained with --{name} {wanted}, and this server has "
                            f"{here}: draw it with a server that has the same."
                        )
                self._fitting[key] = None
        return entry
