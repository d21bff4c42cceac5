"""From the options to what a method trains, and from that to the files people keep."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, PeftConfig
from safetensors.torch import save
from torch import nn

from loldu import ConceptError, LoLDUConfig, save_concept
from loldu.base.families import family_of
from loldu.errors import LoLDUError
from loldu.files import write_atomically
from trainer.methods.lora_file import LORA, lora_bytes, lora_header
from trainer.methods.parts import Diagonals, Lora, NewWords, Part, State, WholeModel, under
from trainer.options.config import AdapterConfig, Config, OptimizationConfig

TEXT_ENCODER, WORDS = "text_encoder", "words"
FILE_NAMES = {
    "loldu": "concept.safetensors",
    "svfit": "concept.safetensors",
    "lora": LORA,
    "dreambooth": "pipeline",
    "textual_inversion": "learned_embeds.safetensors",
}
LEARNED_WORD = FILE_NAMES["textual_inversion"]


@dataclass(frozen=True)
class Trained:
    """What a run trains, for one concept or for several that do not touch each other.

    Attributes:
        concepts: names; several share the passes through the base.
        parts: by the model of the pipeline they are on.
    """

    concepts: tuple[str, ...]
    parts: Mapping[str, Part]

    @property
    def trains_text(self) -> bool:
        """Whether prompts mean something else after every step."""
        return any(key == WORDS or key.startswith(TEXT_ENCODER) for key in self.parts)

    @property
    def gives_base_back(self) -> bool:
        """Whether the base can be had with `off`, once training has begun."""
        return all(part.gives_base_back for part in self.parts.values())

    def parameters(self, concept: str | None = None) -> list[nn.Parameter]:
        """What is trained, in fp32: of a concept, or of all."""
        concepts = self.concepts if concept is None else [concept]
        return [
            parameter
            for name in concepts
            for part in self.parts.values()
            for parameter in part.parameters(name)
        ]

    def groups(self, optimization: OptimizationConfig) -> list[dict[str, Any]]:
        """The optimizer's groups: parameters and their learning rate."""
        rates = {TEXT_ENCODER: optimization.text_encoder_lr, WORDS: optimization.word_lr}
        return [
            {
                "params": [p for name in self.concepts for p in part.parameters(name)],
                # text_encoder_2 of a base with several has the rate of the first
                "lr": rates.get(key.rstrip("_0123456789")) or optimization.learning_rate,
            }
            for key, part in self.parts.items()
        ]

    def state_dict(self) -> State:
        """The state of all parts, for a checkpoint."""
        return {
            f"{key}.{name}": tensor
            for key, part in self.parts.items()
            for name, tensor in part.state_dict().items()
        }

    def load_state_dict(self, state: State) -> None:
        """Put it back."""
        for key, part in self.parts.items():
            part.load_state_dict(under(key, state))

    def delta_norms(self) -> list[float | None]:
        """How far each concept's network is from the base's; its word if only that is trained.

        The host waits for the device once.
        """
        part = next(iter(self.parts.values()))  # the network comes first
        norms = [part.delta_norm(concept) for concept in self.concepts]
        known = [norm for norm in norms if norm is not None]
        return torch.stack(known).tolist() if known else [None] * len(norms)

    def project(self, max_delta_norm: float) -> None:
        """Bring the change of every weight back onto its ball.

        Source: LoLDU, Eq. (10)-(12).
        """
        for part in self.parts.values():
            part.project(max_delta_norm)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base alone, for as long as the block lasts."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.off())
            yield

    @contextmanager
    def only(self, concept: str) -> Iterator[None]:
        """One concept on all rows of a batch, to draw with, for as long as the block lasts."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.only(concept))
            yield


def learn_words(pipeline: DiffusionPipeline, configs: Mapping[str, Config]) -> dict[str, Part]:
    """Teach tokenizer and text encoder the concepts' new words, before any prompt is encoded.

    Raises:
        LoLDUError: when a word is not new, or starts from one that the base does not know.
    """
    initializers: dict[str, int] = {}
    for concept, config in configs.items():
        word, start = config.instance.placeholder_token, config.instance.initializer_token
        if word is None or start is None:
            continue
        tokenizer = pipeline.tokenizer
        ids = tokenizer.encode(start, add_special_tokens=False)
        if len(ids) != 1:
            raise LoLDUError(
                f"--initializer_token {start} is {len(ids)} tokens to this base; give a common "
                "word that is one, such as dog."
            )
        if len(tokenizer.encode(word, add_special_tokens=False)) == 1:
            raise LoLDUError(
                f"--placeholder_token {word} is a word that this base knows, or another "
                f"concept's; make one up, such as <{concept}>."
            )
        tokenizer.add_tokens(word)
        initializers[concept] = ids[0]
    return {WORDS: NewWords(pipeline.text_encoder, initializers)} if initializers else {}


def add_trainables(
    pipeline: DiffusionPipeline, configs: Mapping[str, Config], words: Mapping[str, Part]
) -> Trained:
    """Put on the frozen pipeline, in its compute dtype, what the method trains, in fp32.

    What is trained stays fp32 in every precision: in bf16 an AdamW step of 5e-4 is smaller than
    the spacing of the numbers.

    Args:
        pipeline: the base.
        configs: the options of every concept; all but their pictures and prompts are alike.
        words: what `learn_words` gave.

    Raises:
        LoLDUError: when no layer matches, or the adapter refuses its options.
    """
    config = next(iter(configs.values()))
    adapter, seed = config.adapter, config.optimization.seed
    parts: dict[str, Part] = {}
    torch.manual_seed(seed)  # LoRA's A is random
    family = family_of(pipeline)
    targets = {family.network: adapter.target_modules or family.target_modules}
    if adapter.train_text_encoder:
        targets |= dict.fromkeys(family.text_encoders, family.text_target_modules)
    if adapter.method == "dreambooth":
        parts = {key: WholeModel(getattr(pipeline, key)) for key in targets}
    elif adapter.method != "textual_inversion":
        for key, names in targets.items():
            model = getattr(pipeline, key)
            rank = _rank(model, names, adapter, family.target_modules)
            try:
                parts[key] = _adapt(model, adapter, names, rank, seed, [*configs])
            except ValueError as error:
                reason = str(error).splitlines()[0].rstrip(".")
                raise LoLDUError(
                    f"The {adapter.method} adapter cannot be added: {reason}."
                ) from error
    return Trained((*configs,), {**parts, **words})


def _adapt(
    model: nn.Module,
    adapter: AdapterConfig,
    targets: tuple[str, ...],
    rank: int,
    seed: int,
    concepts: list[str],
) -> Part:
    if adapter.method == "lora":
        alpha: Any = adapter.alpha or rank  # typed as an int, but any number will do
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
        return Lora(model, config, *concepts)
    return Diagonals(
        model, {concept: diagonal_config(adapter, targets, rank, seed) for concept in concepts}
    )


def diagonal_config(
    adapter: AdapterConfig, targets: tuple[str, ...], rank: int, seed: int
) -> PeftConfig:
    """The PEFT config of LoLDU or SVFit."""
    return LoLDUConfig(
        r=rank,
        alpha=adapter.alpha,
        factorization="svd" if adapter.method == "svfit" else "ldu",
        diagonal_init=adapter.diagonal_init,
        residual=adapter.residual,
        pivoting=adapter.pivoting,
        normalize_directions=adapter.normalize_directions,
        train_scale=adapter.train_scale,
        seed=seed,
        target_modules=list(targets),
    )


def _rank(
    model: nn.Module, targets: tuple[str, ...], adapter: AdapterConfig, usual: tuple[str, ...]
) -> int:
    """The rank asked for; `full` is that of the largest layer, which the smaller ones clamp.

    The scale alpha / rank multiplies the diagonal's steps, so it must be the same on all layers.
    """
    shapes: list[torch.Size] = [
        module.weight.shape  # pyright: ignore[reportAssignmentType]  a module's attributes are untyped
        for name, module in model.named_modules()
        if hasattr(module, "weight")
        and any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    if not shapes:
        raise LoLDUError(
            f"--target_modules {' '.join(targets)} matches no layer of the {type(model).__name__}; "
            f"usual ones are {', '.join(usual)}."
        )
    if adapter.rank != "full":
        return adapter.rank
    return max(min(shape[0], shape[1:].numel()) for shape in shapes)


def save_result(
    pipeline: DiffusionPipeline,
    trained: Trained,
    concept: str,
    config: Config,
    metadata: dict[str, Any],
) -> Path:
    """Write what was trained as the file people keep, whole or not at all.

    A concept for loldu and svfit; for the others what diffusers reads with `load_lora_weights` or
    `load_textual_inversion` (a learned word is beside every method's file), or a whole pipeline.

    Raises:
        LoLDUError: when the adapter is not fit to be saved.
    """
    folder, method = config.run.output_dir, config.adapter.method
    path = folder / FILE_NAMES[method]
    word, words = config.instance.placeholder_token, trained.parts.get(WORDS)
    if word is not None and isinstance(words, NewWords):
        vector = words.words.embedding(concept).detach().cpu()
        write_atomically(folder / LEARNED_WORD, save({word: vector}))
    if method in ("loldu", "svfit"):
        try:
            save_concept(pipeline, path, concept, metadata, overwrite=True)
        except ConceptError as error:
            raise LoLDUError(f"The concept cannot be saved: {error}.") from error
    elif method == "lora":
        models = {key: getattr(pipeline, key) for key in trained.parts if key != WORDS}
        prefixes = family_of(pipeline).lora_prefixes
        content = lora_bytes(models, concept, lora_header(pipeline, metadata), prefixes)
        write_atomically(path, content)
    elif method == "dreambooth":
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pipeline-") as temporary:
            pipeline.save_pretrained(temporary)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
            Path(temporary).mkdir()  # for the context to remove
    return path
