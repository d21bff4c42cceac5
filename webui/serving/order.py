"""Read a request in the shape of OpenAI's images API, and say in one sentence what is wrong."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from loldu.errors import LoLDUError
from loldu.options import build, limit_problems, option, options, typed_values
from webui.drawing.facts import Facts
from webui.drawing.settings import GUIDANCE, MAX_CONCEPTS, MAX_PROMPT, MAX_STRENGTH, SEEDS, STEPS
from webui.drawing.words import put
from webui.serving.shelf import NoConceptError, Shelf

BASE = "base"
"""Name of the model without concepts."""
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True)
class Ask:
    """One picture.

    Attributes:
        prompt: Prompt, with the words of its concepts.
        negative_prompt: Negative prompt.
        concepts: Name and strength of each concept.
        seed: Seed of its noise.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt.
        resolution: Side in pixels; None for the base's own.
    """

    prompt: str
    negative_prompt: str
    concepts: tuple[tuple[str, float], ...]
    seed: int
    num_inference_steps: int
    guidance_scale: float
    resolution: int | None


@dataclass(frozen=True)
class Body:
    """The keys of a request; those that OpenAI's clients send and that mean nothing here last."""

    prompt: str = ""
    model: str | None = None
    strength: float = option(1.0, at_least=0, at_most=MAX_STRENGTH)
    n: int = option(1, at_least=1, at_most=16)
    size: str = "auto"
    negative_prompt: str = ""
    seed: int | None = option(None, at_least=SEEDS[0], at_most=SEEDS[1])
    num_inference_steps: int = option(25, at_least=STEPS[0], at_most=STEPS[1])
    guidance_scale: float = option(7.5, at_least=GUIDANCE[0], at_most=GUIDANCE[1])
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    user: str | None = None
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None


@dataclass(frozen=True)
class Order:
    """The pictures of a request.

    Attributes:
        asks: The pictures, which differ in their seeds.
        revised_prompt: The prompt with the words that it lacked, or None if it had them.
    """

    asks: tuple[Ask, ...]
    revised_prompt: str | None


def read_order(
    content: bytes, shelf: Shelf, defaults: Mapping[str, Any], most_px: int = 1024
) -> Order:
    """Read the JSON of a request.

    `model` names a concept or its word, `concepts` several with a strength each. Without both, the
    words in the prompt call concepts. A prompt that lacks the words of a named concept gets them.

    Args:
        content: The JSON.
        shelf: The concepts.
        defaults: Values of keys that the request leaves out.
        most_px: Largest side of a picture.

    Raises:
        NoConceptError: If there is no such concept.
        LoLDUError: If anything else is wrong with the request.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LoLDUError("The request is not JSON: send an object with a prompt.") from error
    if not isinstance(values, dict):
        raise LoLDUError("The request is not a JSON object: send one with a prompt.")
    given = {key: value for key, value in cast(dict[str, Any], values).items() if value is not None}
    mixture = given.pop("concepts", None)
    body = build(Body, {**defaults, **typed_values(given, options(Body), "The request")})
    _check(body, most_px)
    strengths = _strengths(body, mixture, shelf)
    facts = [shelf.facts(name) for name in strengths]
    prompt = body.prompt
    for one in facts:
        prompt = put(prompt, one, facts)
    _check_text("prompt", prompt)
    first = secrets.randbelow(SEEDS[1] + 1) if body.seed is None else body.seed
    asks = tuple(
        Ask(
            prompt,
            body.negative_prompt,
            tuple(strengths.items()),
            (first + place) % (SEEDS[1] + 1),
            body.num_inference_steps,
            body.guidance_scale,
            _resolution(body.size, most_px),
        )
        for place in range(body.n)
    )
    return Order(asks, None if prompt == body.prompt else prompt)


def _check(body: Body, most_px: int) -> None:
    for problem in limit_problems(body):
        raise LoLDUError(problem.removeprefix("--"))
    if not body.prompt.strip():
        raise LoLDUError("The prompt is empty: say what should be in the picture.")
    _check_text("prompt", body.prompt)
    _check_text("negative_prompt", body.negative_prompt)
    _resolution(body.size, most_px)


def _check_text(key: str, text: str) -> None:
    if len(text) > MAX_PROMPT:
        raise LoLDUError(
            f"The {key} has {len(text):,} characters, and the most is {MAX_PROMPT:,}: shorten it."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LoLDUError(f"The {key} has half of a character: send valid UTF-8.") from error


def _resolution(size: str, most_px: int) -> int | None:
    if size == "auto":
        return None
    found = _SIZE.fullmatch(size)
    side = int(found[1]) if found and found[1] == found[2] else 0
    if side % 8 or not 8 <= side <= most_px:
        raise LoLDUError(
            f"size is {size[:20]!r}: pictures are squares of at most {most_px} pixels, in steps of "
            "8, such as 512x512; auto is the base's own size."
        )
    return side


def _strengths(body: Body, mixture: Any, shelf: Shelf) -> dict[str, float]:  # noqa: ANN401
    """Return the strength of each concept of a request, by name."""
    if mixture is not None:
        if body.model not in (None, BASE):
            raise LoLDUError("model and concepts both name concepts: send one of the two.")
        return _mixture(mixture, shelf)
    if body.model == BASE:
        return {}
    if body.model is not None:
        return {_named(body.model, shelf): body.strength}
    called = shelf.called_in(body.prompt)
    names = [_only(word, names) for word, names in called.items()]
    if len(names) > MAX_CONCEPTS:
        raise LoLDUError(
            f"The prompt calls {len(names)} concepts, and the most is {MAX_CONCEPTS}: name fewer."
        )
    return dict.fromkeys(names, body.strength)


def _named(name: str, shelf: Shelf) -> str:
    """Return the name of the concept that has a name or a word."""
    try:
        return shelf.get(name).name
    except NoConceptError:
        if name.strip() and (names := shelf.called_in(name).get(name.lower())):
            return _only(name, names)
        raise


def _only(word: str, names: list[str]) -> str:
    if len(names) > 1:
        some = ", ".join(names[:5])
        raise LoLDUError(
            f"{len(names)} concepts have the word {word!r} ({some}{', ...' * (len(names) > 5)}): "
            "name one of them as the model."
        )
    return names[0]


def _mixture(mixture: Any, shelf: Shelf) -> dict[str, float]:  # noqa: ANN401
    strengths = cast(dict[str, Any], mixture) if isinstance(mixture, dict) else {}
    good = 1 <= len(strengths) <= MAX_CONCEPTS and all(
        type(strength) in (int, float) and 0 <= strength <= MAX_STRENGTH
        for strength in strengths.values()
    )
    if not good:
        raise LoLDUError(
            f"concepts must be an object of at most {MAX_CONCEPTS} names, each with a strength "
            f'from 0 to {MAX_STRENGTH}, such as {{"dog": 0.8}}.'
        )
    return {_named(name, shelf): float(strength) for name, strength in strengths.items()}


def described(facts: Facts) -> dict[str, Any]:
    """Return what GET /v1/models/NAME says of a concept."""
    about = facts.about
    return {
        "id": facts.name,
        "object": "model",
        "owned_by": BASE,
        "word": about.token,
        "class": about.class_name,
        "prompt": about.prompt,
        "base": about.base,
        "bytes": about.bytes,
    }
