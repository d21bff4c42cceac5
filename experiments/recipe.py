"""How a run is trained: one flat set of options for every kind of experiment."""

from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from transformers import SchedulerType

from loldu.errors import LoLDUError, hint

Report = Literal["last", "best"]
Precision = Literal["fp32", "bf16", "fp16"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "report": get_args(Report),
    "precision": get_args(Precision),
    "lr_scheduler": tuple(kind.value for kind in SchedulerType),
}
_TEXTS = (*_CHOICES, "tasks")
_COUNTS = (
    "batch_size",
    "micro_batch_size",
    "epochs",
    "evaluate_every",
    "max_length",
    "image_size_px",
    "limit",
)
"""Of which nothing would be left at 0."""


@dataclass(frozen=True)
class Recipe:
    """The options of a training and its evaluation.

    Attributes:
        learning_rate: Peak, of what the method trains.
        head_learning_rate: Peak, of the head; the same where there is none.
        batch_size: Rows a step.
        micro_batch_size: Rows in memory at once; all of them where there is none.
        epochs: Passes over the data.
        weight_decay: AdamW's, on everything that decays by transformers' rule.
        warmup_steps: Linear warm-up.
        warmup_ratio: The same as a share of all steps; counts where there are no steps.
        lr_scheduler: transformers' name: "linear", "cosine" or "constant_with_warmup".
        max_grad_norm: Gradients are cut to this norm; 0 leaves them.
        precision: Of the computation; what is trained is fp32 always.
        report: The "last" epoch's score, or that of the "best" by the test data, as some papers do.
        evaluate_every: Epochs between evaluations, where the best is reported.
        max_length: Tokens of a text; longer ones are cut.
        image_size_px: Edge of the pictures that the model takes.
        crop_scale_min: Least share of a picture's area that a random crop shows; 1 crops nothing.
        flip: Mirror half of the pictures.
        train_on_inputs: Whether the loss counts the tokens of the instruction too.
        tasks: The evaluations of an instruction-tuned model: a folder of experiments/instruct/tasks
            ("instructeval", "pocket"), or "stock", lm-eval's own.
        limit: Rows of each evaluation; all where there is none.
    """

    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    epochs: int = 1
    weight_decay: float = 0.0
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    lr_scheduler: str = "linear"
    max_grad_norm: float = 1.0
    precision: Precision = "fp32"
    report: Report = "last"
    evaluate_every: int = 1
    max_length: int = 128
    image_size_px: int = 224
    crop_scale_min: float = 0.08
    flip: bool = True
    train_on_inputs: bool = False
    tasks: str = "instructeval"
    limit: int | None = None

    @classmethod
    def read(cls, values: dict[str, Any], where: str) -> Self:
        """A recipe from the values that were given for it.

        Raises:
            LoLDUError: An option is unknown or has a value it cannot have.
        """
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                perhaps = hint(key, known, "see experiments/recipe.py")
                raise LoLDUError(f"{where} has the unknown option {key}; {perhaps}.")
        recipe = cls(**values)
        for key, choices in _CHOICES.items():
            if getattr(recipe, key) not in choices:
                raise LoLDUError(
                    f"{where}: {key} must be one of {', '.join(choices)}, not {values[key]!r}."
                )
        for key, value in values.items():
            if key in _COUNTS and not (type(value) is int and value > 0):
                raise LoLDUError(f"{where}: {key} must be 1, 2, 3 or more, not {value!r}.")
            if key not in _TEXTS and not (isinstance(value, int | float) and value >= 0):
                raise LoLDUError(f"{where}: {key} must be a number from 0 on, not {value!r}.")
        if recipe.batch_size % (recipe.micro_batch_size or 1):
            raise LoLDUError(
                f"{where}: batch_size {recipe.batch_size} must be a multiple of micro_batch_size."
            )
        return recipe

    def given(self) -> dict[str, Any]:
        """The options that differ from the defaults: a new option leaves old results valid."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }
