"""DreamBooth as it was published: train every weight; the result is a whole pipeline."""

from collections.abc import Sequence
from pathlib import Path

from diffusers import DiffusionPipeline
from torch import nn

from trainer.methods.method import Method, target_modules
from trainer.methods.trained import State, Trainable
from trainer.options.config import Config

PIPELINE = "pipeline"


def add(
    pipeline: DiffusionPipeline, config: Config, concepts: Sequence[str]
) -> dict[str, Trainable]:
    """Make the network trainable, and the text encoders if they are trained too."""
    components = target_modules(pipeline, config.adapter)
    return {component: WholeModel(getattr(pipeline, component)) for component in components}


def save(path: Path, pipeline: DiffusionPipeline, *_: object) -> None:
    """Write the whole pipeline."""
    pipeline.save_pretrained(path)


class WholeModel(Trainable):
    """Every weight of one model, for one concept."""

    gives_base_back = False

    def __init__(self, model: nn.Module) -> None:
        """Make all weights trainable, in fp32."""
        self._model = model.float().requires_grad_(True)

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """Return all weights."""
        return [*self._model.parameters()]

    def state_dict(self) -> State:
        """Return all weights."""
        return self._model.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Load all weights."""
        self._model.load_state_dict(state)


METHOD = Method(
    title="DreamBooth",
    file_name=PIPELINE,
    about="the whole pipeline, for diffusers",
    add=add,
    save=save,
    trains_base=True,
)
