"""LoRA: train PEFT's two new matrices for each layer; the usual yardstick."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loldu.base.families import family_of
from loldu.files import write_atomically
from trainer.methods.lora_file import LORA, lora_bytes, lora_header
from trainer.methods.method import Method, add_adapters
from trainer.methods.trained import WORDS, State, Trainable, Trained
from trainer.options.config import Config


def add(
    pipeline: DiffusionPipeline, config: Config, concepts: Sequence[str]
) -> dict[str, Trainable]:
    """Add PEFT's LoRA, for one concept."""

    def make(model: Any, targets: list[str], rank: int) -> Matrices:  # noqa: ANN401
        alpha: Any = config.adapter.alpha or rank  # typed as an int, but any number will do
        own = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        return Matrices(model, own, *concepts)

    return add_adapters(pipeline, config.adapter, make)


def save(
    path: Path,
    pipeline: DiffusionPipeline,
    trained: Trained,
    concept: str,
    metadata: dict[str, Any],
) -> None:
    """Write the LoRA file."""
    models = {key: getattr(pipeline, key) for key in trained.parts if key != WORDS}
    prefixes = family_of(pipeline).lora_prefixes
    write_atomically(path, lora_bytes(models, concept, lora_header(pipeline, metadata), prefixes))


class Matrices(Trainable):
    """The matrices A and B of every layer of one model, for one concept."""

    def __init__(self, model: Any, config: PeftConfig, concept: str) -> None:  # noqa: ANN401
        """Add a LoRA to a model of diffusers or transformers; its B is zero.

        Raises:
            ValueError: If no layer matches.
        """
        self._model, self._concept = model, concept
        model.add_adapter(config, adapter_name=concept)
        for parameter in self.parameters(concept):
            parameter.data = parameter.data.float()

    def parameters(self, concept: str) -> list[nn.Parameter]:
        """Return A and B of every layer."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def state_dict(self) -> State:
        """Return A and B of every layer."""
        return get_peft_model_state_dict(self._model, adapter_name=self._concept)

    def load_state_dict(self, state: State) -> None:
        """Load A and B of every layer."""
        set_peft_model_state_dict(self._model, state, adapter_name=self._concept)

    @torch.no_grad()
    def delta_norm(self, concept: str) -> Float[Tensor, ""]:
        """Return ‖B A‖_F over all layers together."""
        layers: list[Any] = [m for m in self._model.modules() if isinstance(m, BaseTunerLayer)]
        norms = [layer.get_delta_weight(concept).float().norm() for layer in layers]
        return torch.stack(norms).norm()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside the block, the model is the base's."""
        self._model.disable_adapters()
        try:
            yield
        finally:
            self._model.enable_adapters()


METHOD = Method(
    title="LoRA",
    file_name=LORA,
    about="a LoRA, for A1111, ComfyUI and diffusers",
    add=add,
    save=save,
    is_adapter=True,
)
