"""Trains a pretrained encoder with a new head: shared by images and sentences."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import EvalPrediction

from experiments.config import Run
from experiments.methods import adapt, count_parameters
from experiments.outcome import Outcome
from experiments.pretrained import facts_of, fetching
from experiments.training import fit, total_steps

HEAD = ("classifier",)
"""Every method trains the head in full, as in Hu et al., "LoRA"; it is not counted."""


# Nine parameters: the parts in which images and sentences differ.
def classify(
    run: Run,
    work: Path,
    model_class: Any,  # noqa: ANN401  a class of transformers
    splits: Mapping[str, Any],
    *,
    num_labels: int,
    facts: Mapping[str, Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    score: Callable[[EvalPrediction], Mapping[str, float]],
    metric: str,
) -> Outcome:
    """Train on the split "train", from the last checkpoint in `work` if there is one, and test.

    Args:
        run: The run.
        work: Folder for checkpoints.
        model_class: Class of the model, with `from_pretrained` and a head.
        splits: Rows of "train" and "test" as the model takes them.
        num_labels: Number of classes; 1 for a score.
        facts: Facts about the data, for the record.
        collate: Function that makes rows a batch.
        score: Function from predictions to scores by name.
        metric: Name of the score in the table.

    Raises:
        LoLDUError: If the base is unavailable, or the method is invalid.
    """
    torch.manual_seed(run.seed)  # the new head starts alike for every method
    with fetching(run.model):
        base = model_class.from_pretrained(run.model, num_labels=num_labels, dtype=torch.float32)
    facts = {**facts_of(base), **facts}
    steps = total_steps(run.recipe, len(splits["train"]))
    model = adapt(base, run.method, run.options, head=HEAD, seed=run.seed, total_steps=steps)
    fitted = fit(
        model,
        run.recipe,
        splits["train"],
        splits["test"],
        head=HEAD,
        seed=run.seed,
        work=work,
        collate=collate,
        score=score,
    )
    scores = fitted.reported(metric, run.recipe.report)
    parameters, head_parameters = count_parameters(model, HEAD)
    return Outcome(
        score=scores[metric],
        scores=scores,
        parameters=parameters,
        head_parameters=head_parameters,
        facts=facts,
        **vars(fitted),
    )
