"""The one exception of eval for what a person can put right."""

from trainer.errors import TrainerError


class EvalError(TrainerError):
    """A mistake in flags, files or environment, told in one sentence without a traceback."""
