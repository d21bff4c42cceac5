"""The one exception for what a person can put right."""


class TrainerError(Exception):
    """A mistake in flags, files or environment, told in one sentence without a traceback."""
