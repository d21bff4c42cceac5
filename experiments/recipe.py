"""Training options of a run: one flat set for every kind of experiment."""

from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from loldu.errors import LoLDUError, hint

Report = Literal["last", "best"]
Precision = Literal["fp32", "bf16", "fp16"]
# transformers.SchedulerType; importing it takes seconds.
LR_SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "report": get_args(Report),
    "precision": get_args(Precision),
    "lr_scheduler": LR_SCHEDULERS,
}
_STRINGS = (*_CHOICES, "tasks")
_COUNTS = (
    "batch_size",
    "micro_batch_size",
    "epochs",
    "evaluate_every",
    "max_length",
    "image_size_px",
    "limit",
)
"""Options that must be at least 1."""


@dataclass(frozen=True)
class Recipe:
    """The options of a training and its evaluation.

    Attributes:
        learning_rate: Peak learning rate of the method's parameters.
        head_learning_rate: Peak learning rate of the head; None for the same.
        batch_size: Rows per optimizer step.
        micro_batch_size: Rows in memory at once; None for all of the batch.
        epochs: Passes over the data.
        weight_decay: AdamW's weight decay; transformers' rule selects the parameters.
        warmup_steps: Steps of linear warm-up.
        warmup_ratio: Warm-up as a share of all steps, if `warmup_steps` is 0.
        lr_scheduler: Schedule name in transformers, such as "linear" or "cosine".
        max_grad_norm: Largest gradient norm; 0 for no clipping.
        precision: Precision of the computation; trained parameters are always fp32.
        report: Epoch to report: the "last", or the "best" on the test data, as some papers do.
        evaluate_every: Epochs between evaluations, with `report = "best"`.
        max_length: Tokens at which a text is cut.
        image_size_px: Edge of the model's input pictures.
        crop_scale_min: Smallest area of a random crop, as a share of the picture; 1 for no crop.
        flip: Mirror half of the pictures.
        train_on_inputs: Count the instruction's tokens in the loss, too.
        tasks: Evaluation tasks of an instruction-tuned model: a folder in
            experiments/kinds/instruct/tasks, or "stock" for those of lm-eval.
        limit: Rows of each evaluation; None for all.
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
        """Return a recipe from TOML values.

        Raises:
            LoLDUError: If an option is unknown or its value is invalid.
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
            if key not in _STRINGS and not (isinstance(value, int | float) and value >= 0):
                raise LoLDUError(f"{where}: {key} must be a number of at least 0, not {value!r}.")
        if recipe.batch_size % (recipe.micro_batch_size or 1):
            raise LoLDUError(
                f"{where}: batch_size {recipe.batch_size} must be a multiple of micro_batch_size."
            )
        return recipe

    def given(self) -> dict[str, Any]:
        """Return the options that differ from the defaults.

        Results hold these alone, so that a new option keeps old results valid.
        """
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }
