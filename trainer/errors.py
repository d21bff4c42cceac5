"""How a run ends before its time."""


class TrainerError(Exception):
    """A mistake in flags, files or environment, told in one sentence without a traceback."""


class Stopped(Exception):
    """The run was asked to stop, and did, with a checkpoint to continue from."""
