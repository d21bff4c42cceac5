"""Training options of a run: one flat set for every kind of experiment."""

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from loldu.errors import LoLDUError
from loldu.options import build, limit_problems, option, options, typed_values

# transformers.SchedulerType; importing it takes seconds.
LrScheduler = Literal[
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
]


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

    learning_rate: float = option(1e-3, at_least=0)
    head_learning_rate: float | None = option(None, at_least=0)
    batch_size: int = option(32, at_least=1)
    micro_batch_size: int | None = option(None, at_least=1)
    epochs: int = option(1, at_least=1)
    weight_decay: float = option(0.0, at_least=0)
    warmup_steps: int = option(0, at_least=0)
    warmup_ratio: float = option(0.0, at_least=0)
    lr_scheduler: LrScheduler = "linear"
    max_grad_norm: float = option(1.0, at_least=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    report: Literal["last", "best"] = "last"
    evaluate_every: int = option(1, at_least=1)
    max_length: int = option(128, at_least=1)
    image_size_px: int = option(224, at_least=1)
    crop_scale_min: float = option(0.08, at_least=0, at_most=1)
    flip: bool = True
    train_on_inputs: bool = False
    tasks: str = "instructeval"
    limit: int | None = option(None, at_least=1)

    @classmethod
    def read(cls, values: dict[str, Any], where: str) -> Self:
        """Return a recipe from TOML values.

        Raises:
            LoLDUError: If an option is unknown or its value is invalid.
        """
        known = options(cls)
        recipe = build(cls, typed_values(values, known, where, "see experiments/recipe.py"))
        for problem in limit_problems(recipe):
            raise LoLDUError(f"{where}: {problem.removeprefix('--')}")
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
