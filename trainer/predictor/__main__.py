"""`python -m trainer.predictor`: train a network that reads concepts off pictures."""

import logging
import sys
from collections.abc import Sequence

import tyro

from loldu.command import run_command
from loldu.errors import LoLDUError
from loldu.options import limit_problems, text_problems
from trainer.predictor.options import PredictorConfig


def run(argv: Sequence[str] | None = None) -> int:
    """Train a predictor, and return the exit status: 2 after a mistake, 130 after a stop."""
    logging.basicConfig(format="%(message)s")
    for package in ("loldu", "trainer"):
        logging.getLogger(package).setLevel(logging.INFO)
    stopped = "Stopped; --resume latest continues from the last checkpoint."
    return run_command(lambda: _train(parse(argv)), stopped)


def parse(argv: Sequence[str] | None = None) -> PredictorConfig:
    """Return the options of a command line.

    Raises:
        LoLDUError: If a value cannot work.
        SystemExit: From tyro, with status 2, for an unknown flag or a value of the wrong type.
    """
    config = tyro.cli(
        PredictorConfig,
        args=argv,
        prog="python -m trainer.predictor",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    for problem in (*limit_problems(config), *text_problems(config)):
        raise LoLDUError(problem)
    fitting = config.fitting
    if fitting.min_timestep >= fitting.max_timestep:
        raise LoLDUError(
            f"--min_timestep {fitting.min_timestep} is not below --max_timestep "
            f"{fitting.max_timestep}; leave some timesteps between them."
        )
    if fitting.train_batch_size % fitting.rows_per_subject:
        raise LoLDUError(
            f"--train_batch_size {fitting.train_batch_size} is no multiple of --rows_per_subject "
            f"{fitting.rows_per_subject}; change one of them."
        )
    return config


def _train(config: PredictorConfig) -> None:
    """Find the subjects, open the base, and train."""
    import torch

    from loldu.base.open import load_pipeline
    from trainer.predictor.fit import check_output, new_predictor, train_predictor
    from trainer.predictor.subjects import encode_subjects, find_subjects
    from trainer.results.lock import locked
    from trainer.training.base import DTYPES
    from trainer.training.cache import leave_device

    check_output(config)
    with locked(config.output.output_dir):
        found = find_subjects(config.data)
        pipeline = load_pipeline(
            config.base,
            torch_dtype=DTYPES[config.fitting.mixed_precision],
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        predictor = new_predictor(config, pipeline)
        subjects = encode_subjects(pipeline, found, config.data, predictor.reader.config)
        leave_device(pipeline)
        path = train_predictor(config, pipeline, predictor, subjects)
    logging.getLogger("trainer").info("Saved %s", path)


if __name__ == "__main__":
    sys.exit(run())
