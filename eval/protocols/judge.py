"""A vision-language model as the judge of pictures, by a rubric with five levels.

The two questions are those of DreamBench++ (arXiv:2406.16855), in words of our own. A question is
asked several times at temperature 0, each time in another way: the other order of pictures or
levels, and another real picture. So the agreement of the repeats says how much such things matter.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from eval.encoders.encoder import model_digest
from loldu.errors import LoLDUError
from loldu.pictures.open import load_image

logger = logging.getLogger(__name__)

MOST = 4
"""Best level."""
CONCEPT, PROMPT = "judge_concept", "judge_prompt"
_ANSWER = re.compile(r"^[ *]*score[ *]*:[ *]*([0-4])[ *.]*$", re.IGNORECASE | re.MULTILINE)
_END = (
    "Say in one or two sentences what you compared. Then end with one line in exactly this form:\n"
    "Score: N\nwhere N is 0, 1, 2, 3 or 4."
)
_CONCEPT_LEVELS = (
    "0: another thing; nothing that makes the subject itself is there.",
    "1: the same kind of thing, but most of its own features are missing or wrong.",
    "2: some of its own features are right, and others are clearly wrong.",
    "3: the same subject, with small differences that one must look for.",
    "4: the same subject in every feature that can be seen.",
)
_PROMPT_LEVELS = (
    "0: the picture has nothing to do with the description.",
    "1: one thing of the description is there, and most is missing.",
    "2: about half of the description is there, or its main point is missing.",
    "3: all main points are there, and a detail is missing or wrong.",
    "4: everything that the description says is there.",
)


@runtime_checkable
class Judge(Protocol):
    """Anything that answers a question about pictures.

    Attributes:
        identity: Name and weights, for result files.
    """

    identity: str

    def answer(self, images: Sequence[Image.Image], text: str) -> str:
        """Return the answer to a question about pictures, at temperature 0."""
        ...


class ModelJudge:
    """A vision-language model that transformers can open, with the chat template of its folder."""

    def __init__(self, name_or_path: str, device: torch.device | str) -> None:
        """Load the model.

        Raises:
            LoLDUError: If transformers cannot open it as such a model.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self._processor: Any = AutoProcessor.from_pretrained(name_or_path)
            model: Any = AutoModelForImageTextToText.from_pretrained(name_or_path, dtype="auto")
            if not getattr(self._processor, "chat_template", None):
                raise ValueError("no chat template")
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError, ImportError) as error:
            raise LoLDUError(
                f"--judge {name_or_path} is no vision-language model with a chat template that "
                "transformers can open; give a folder or hub id such as "
                "Qwen/Qwen2.5-VL-3B-Instruct."
            ) from error
        self._model = model.eval().to(device)
        self.identity = f"{name_or_path} ({model_digest(model)})"

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], text: str, max_new_tokens: int = 200) -> str:
        """Return the answer to a question about pictures, at temperature 0."""
        shown = [{"type": "image", "image": image} for image in images]
        content = [*shown, {"type": "text", "text": text}]
        inputs = self._processor.apply_chat_template(
            [[{"role": "user", "content": content}]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device)
        tokens = self._model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return self._processor.batch_decode(new, skip_special_tokens=True)[0]


def parse_score(answer: str) -> int | None:
    """Return the level that an answer ends with, or None if it has another form.

    There must be one line "Score: N" and no other such line.
    """
    found = _ANSWER.findall(answer)
    mentions = len(re.findall(r"score[ *]*:", answer, re.IGNORECASE))
    return int(found[0]) if len(found) == 1 and mentions == 1 else None


def concept_question(repeat: int) -> str:
    """Return the question about concept preservation; odd repeats show the real picture last."""
    real, made = ("second", "first") if repeat % 2 else ("first", "second")
    return "\n".join(
        (
            f"The {real} picture is a photograph of a subject. The {made} picture was generated to "
            "show the same subject. How well was the subject kept? Compare its shape, its colors, "
            "its texture and its details, and the features of a face. The place, the pose, the "
            "light and the style may differ.",
            *_CONCEPT_LEVELS[:: -1 if repeat % 2 else 1],
            _END,
        )
    )


def prompt_question(prompt: str, repeat: int) -> str:
    """Return the question about prompt following; odd repeats list the levels from the best on."""
    return "\n".join(
        (
            f'The picture was generated from this description: "{prompt}". How well does it follow '
            "the description? Look for each thing, property, place, action and style in it. Beauty "
            "and quality do not count.",
            *_PROMPT_LEVELS[:: -1 if repeat % 2 else 1],
            _END,
        )
    )


@dataclass(frozen=True)
class Judgement:
    """Levels of pictures, a row each and a column for each repeat; NaN without a valid answer."""

    levels: Float[np.ndarray, "n repeats"]

    @property
    def scores(self) -> Float[np.ndarray, " n"] | None:
        """Mean level of each picture from 0 to 1, or None if a picture has no valid answer."""
        answered = ~np.isnan(self.levels)
        if not answered.any(1).all():
            return None
        return np.where(answered, self.levels, 0).sum(1) / answered.sum(1) / MOST

    @property
    def agreement(self) -> float | None:
        """Share of pairs of repeats with the same level, or None without a pair."""
        pairs = [
            self.levels[:, columns]
            for columns in itertools.combinations(range(self.levels.shape[1]), 2)
        ]
        valid = [pair[~np.isnan(pair).any(1)] for pair in pairs]
        both = np.concatenate(valid) if valid else np.empty((0, 2))
        return float((both[:, 0] == both[:, 1]).mean()) if len(both) else None

    @property
    def unanswered(self) -> int:
        """Number of answers in another form."""
        return int(np.isnan(self.levels).sum())


@runtime_checkable
class Memory(Protocol):
    """Answers by key, such as the feature cache."""

    def get_answer(self, key: str) -> str | None:
        """Return a stored answer, or None."""
        ...

    def put_answer(self, key: str, answer: str) -> None:
        """Store an answer."""
        ...


def judge_pictures(
    judge: Judge,
    memory: Memory | None,
    pictures: Sequence[tuple[Path, str | None]],
    real: Sequence[Path],
    repeats: int,
) -> dict[str, Judgement]:
    """Return the levels of generated pictures, by metric.

    Args:
        judge: Model that answers.
        memory: Stored answers, or None.
        pictures: Generated pictures, each with its prompt without the rare token.
        real: Real pictures of the concept.
        repeats: How often each question is asked.

    Raises:
        LoLDUError: If a picture cannot be read.
    """

    def ask(paths: Sequence[Path], text: str) -> float:
        content = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        key = hashlib.sha256(repr((judge.identity, content, text)).encode()).hexdigest()
        answer = memory.get_answer(key) if memory else None
        if answer is None:
            answer = judge.answer([load_image(path, to_srgb=False) for path in paths], text)
            if memory:
                memory.put_answer(key, answer)
        level = parse_score(answer)
        if level is None:
            logger.info("The judge's answer has no line such as 'Score: 3': %.200s", answer)
        return float("nan") if level is None else float(level)

    def concept(number: int, repeat: int) -> float:
        both = [real[(number + repeat) % len(real)], pictures[number][0]]
        return ask(both[:: -1 if repeat % 2 else 1], concept_question(repeat))

    def prompt(number: int, repeat: int) -> float:
        path, text = pictures[number]
        return ask([path], prompt_question(text or "", repeat))

    asked: dict[str, Callable[[int, int], float]] = {CONCEPT: concept}
    if all(text is not None for _, text in pictures):
        asked[PROMPT] = prompt
    found: dict[str, Judgement] = {}
    for name, question in asked.items():
        numbers = tqdm(range(len(pictures)), desc=name, unit="picture", disable=None)
        rows = [[question(number, repeat) for repeat in range(repeats)] for number in numbers]
        found[name] = Judgement(np.array(rows))
    return found
