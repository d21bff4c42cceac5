"""Every option of the trainer, with its trade-off; the flags and the TOML keys are these names."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from loldu.base.config import BaseModelConfig
from trainer.options.scores import ScoresConfig

Method = Literal["loldu", "svfit", "lora", "dreambooth", "textual_inversion"]
Rank = int | Literal["full"]
Tracker = Literal["tensorboard", "wandb"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
Compile = Literal["no", "blocks", "unet"]


@dataclass(frozen=True)
class InstanceConfig:
    """The pictures of the concept."""

    # Folder with 3-5 pictures (jpg, png, webp, bmp, gif); vary pose and background, or the
    # background becomes part of the concept. A name.txt beside name.jpg, or else its line of
    # metadata.jsonl, is that picture's own prompt; name-masklabel.png marks what to learn of it.
    instance_data_dir: Path | None = None
    # A rare token and the class, e.g. "a photo of sks dog"; needed unless every picture has its
    # own. A common word instead of a rare token drags its old meaning along.
    instance_prompt: str | None = None
    # The rare token in it, to be told in the concept file and on the card; where a class prompt
    # differs from the instance prompt by the token alone, the two tell it themselves, and a
    # --placeholder_token is one.
    token: str | None = None
    # A TOML file with a table for each of several concepts, trained together: every row of a batch
    # has its own concept, so that N cost a batch of N and not N runs, and each becomes what it
    # would alone. A table may have instance_data_dir, instance_prompt, token, class_prompt,
    # class_data_dir, validation_prompt, drift_prompt, placeholder_token and
    # initializer_token.
    concepts: Path | None = None
    # A made-up word of the prompt, such as <dog>, whose embedding is learned too: more likeness at
    # equal steps and a second small file (learned_embeds.safetensors), for a text encoder pass a
    # step.
    placeholder_token: str | None = None
    # The word that the new one starts from, one token to the base: the class, such as dog.
    initializer_token: str | None = None
    # Side in pixels; the base's own (512 for SD v1.x) is safest, smaller is faster and coarser.
    resolution: int = 512
    # Crop the middle of oblong pictures; --no_center_crop takes several random crops, better when
    # the subject is off centre or fills the frame, worse when a crop can miss it.
    center_crop: bool = True
    # Also train on mirrored pictures: more variety, wrong for text and asymmetric subjects.
    random_flip: bool = False
    # What the black of a mask counts where its white counts 1: 0 never learns the background and
    # may fill it with anything, 0.1 keeps it in place at little cost, 1 ignores masks.
    unmasked_weight: float = 0.1


@dataclass(frozen=True)
class PriorConfig:
    """Prior preservation: keep the class what it was."""

    # Train on class pictures too: less drift of the class and of other prompts, up to twice the
    # time a step.
    with_prior_preservation: bool = False
    # Prompts of the class pictures, e.g. "a photo of a dog"; several prompts (backgrounds, other
    # classes) protect more of the model than one.
    class_prompt: tuple[str, ...] = ()
    # Your own class pictures, used as they are, those without a caption with the class prompts in
    # turn; or an empty or absent folder in which to keep the generated ones for later runs
    # (otherwise they live in the output_dir).
    class_data_dir: Path | None = None
    # How many to generate: more protect more and are drawn once; 100-200 is usual.
    num_class_images: int = 100
    # Weight of the prior loss: higher keeps the class, lower learns the concept faster.
    prior_loss_weight: float = 1.0
    # Class pictures a step; as many as train_batch_size unless given.
    prior_batch_size: int | None = None
    # What the class pictures are fitted to. images: the noise in them, as in DreamBooth. base: the
    # frozen base's own prediction, which starts at zero loss and so only ever resists drift, for
    # one more forward pass of the class pictures.
    prior_target: Literal["images", "base"] = "images"


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained."""

    # loldu: a diagonal between fixed LDU factors, tens of kilobytes. svfit: the same between fixed
    # singular vectors, slower to set up. lora: two new matrices, megabytes, the usual yardstick.
    # dreambooth: every weight of the UNet, gigabytes. textual_inversion: only the embedding of
    # --placeholder_token, the weakest.
    method: Method = "loldu"
    # Diagonal entries a layer, clamped to the layer: more learn more for r floats a layer; full
    # takes them all and is close to LoRA in strength. Of lora, the width of its matrices.
    rank: Rank = 32
    # The update is scaled by alpha / rank, which acts as a multiplier of the learning rate; the
    # rank itself (scale 1) unless given. With --rank full it is divided by the largest layer's
    # rank, the same for every layer.
    alpha: float | None = None
    # Start of the diagonal: ldu takes the factorization's own, the others are the paper's ablation.
    diagonal_init: Literal[
        "ldu",
        "uniform",
        "normal",
        "constant",
        "zeros",
        "ones",
        "standard_uniform",
        "standard_normal",
    ] = "ldu"
    # preserve: the model starts exactly as the base, whatever the init. perturb: inits other than
    # ldu start away from it; the authors' code does so for zeros, ones and the standard ones, and
    # loses by it.
    residual: Literal["preserve", "perturb"] = "preserve"
    # Row pivots alone, or complete: also column pivots, which puts the largest directions first and
    # survives singular layers, for a slower set-up. For loldu.
    pivoting: Literal["partial", "complete"] = "partial"
    # Measure directions in units in which a step changes the weight as much: LDU's differ by a
    # factor of ten to forty, and the long ones learn and harm most. More likeness at less drift on
    # the embedded base, at a learning rate several times as large; not in the paper.
    normalize_directions: bool = False
    # Also train one scale a layer (r + 1 parameters, as in the paper); without it weight decay is
    # the only thing that tells the preserving inits apart.
    train_scale: bool = True
    # Ends of the names of the adapted UNet layers; the attention projections by default. Adding
    # ff.net.0.proj ff.net.2 learns texture better and drifts more.
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    # Also train the text encoder, with the same method, on its attention: learns faster what a word
    # stands for, bends what other words mean, and costs a text encoder pass a step.
    train_text_encoder: bool = False


@dataclass(frozen=True)
class OptimizationConfig:
    """How it is trained."""

    # Optimizer steps; too few miss the concept, too many copy the pictures with their backgrounds.
    max_train_steps: int = 1000
    # Concept pictures a step and process: larger is steadier, and slower a step.
    train_batch_size: int = 1
    # Forward passes an optimizer step: a larger batch without its memory, at its full price in
    # time.
    gradient_accumulation_steps: int = 1
    # adamw: fused, the fastest here. adamw8bit (bitsandbytes): keeps its state of tensors from 4096
    # numbers on in 8 bits, a gain for full models and large LoRAs and none for diagonals, which are
    # shorter. prodigy (prodigyopt): finds the learning rate itself, give --learning_rate 1; it
    # reads numbers back for every tensor of every step, which makes a GPU wait. The last two:
    # pip install 'loldu[optimizers]'.
    optimizer: OptimizerName = "adamw"
    # Diagonals need far more than LoRA's 1e-4: 5e-4 on SD v1.5, 1e-2 on very small bases.
    learning_rate: float = 5e-4
    # Of the text encoder, where it is trained, often a lower one; the UNet's unless given.
    text_encoder_lr: float | None = None
    # Of the new word's embedding; 5e-3 is usual for textual_inversion. The UNet's unless given.
    word_lr: float | None = None
    # constant lets you stop anywhere; cosine and linear fall to zero at max_train_steps and end
    # cleaner.
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    # Steps of linear rise to the learning rate; a few keep Adam's first steps from overshooting.
    lr_warmup_steps: int = 0
    # Pulls diagonals toward the base model (and LoRA matrices toward zero); 0 to leave them free.
    adam_weight_decay: float = 0.01
    # Gradients longer than this are shortened to it, against rare bad steps; 0 turns it off.
    max_grad_norm: float = 1.0
    # Keeps the change of every adapted weight inside a ball of this Frobenius norm (the paper's Eq.
    # 10-12): a hard limit on drift that costs likeness. No limit unless given; for loldu and svfit.
    max_delta_norm: float | None = None
    # Min-SNR weighting (5 is usual) evens out the noise levels: faster on shape and colour, less
    # weight on fine grain. The plain loss unless given.
    snr_gamma: float | None = None
    # Shifts the noise of every channel of every picture by this much noise (0.05-0.1 is usual), so
    # that very dark and very bright pictures can be learned; more washes colours out. 0 for none.
    noise_offset: float = 0.0
    # Draw and save the running average of what is trained instead of its last values, e.g. 0.99 for
    # about the last 100 steps: steadier at high learning rates, slower to learn. Off unless given.
    ema_decay: float | None = None
    # Precision of the frozen base; what is trained stays fp32. fp16: CUDA only, half the memory.
    # bf16: the same without loss scaling, coarser. no: fp32, right for CPUs.
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    # Fixes crops, noise, timesteps and order: the same seed and flags give the same adapter.
    seed: int = 42


@dataclass(frozen=True)
class PerformanceConfig:
    """How fast, in how much memory; what is learned changes by rounding only."""

    # Compute activations again in the backward pass instead of keeping them: much less memory for
    # about a third more time.
    gradient_checkpointing: bool = False
    # torch.compile, which pays in long runs: blocks compiles the transformer blocks, in a minute or
    # so; unet the whole network, slower to start and faster then. Needs a C++ compiler on CPUs.
    compile: Compile = "no"
    # Out of memory: stop says what was needed and what to try. adapt takes the step again with
    # gradient checkpointing, then with half the rows of a batch at a time, down to one: the same
    # training, in more time.
    on_oom: Literal["stop", "adapt"] = "stop"


@dataclass(frozen=True)
class RunConfig:
    """What is written, and when."""

    # Folder of the run: the result (concept file, LoRA, README.md, samples), config.toml,
    # metrics.jsonl, summary.json, checkpoints; with --concepts in a folder for each. Only
    # --doctor_only goes without.
    output_dir: Path
    # Replace the run that is in output_dir, and push to a repository that has files; without it
    # (and without --resume) both are left alone.
    overwrite: bool = False
    # Say what is found in the pictures and stop: no base is loaded and nothing is written.
    doctor_only: bool = False
    # latest, or the path of a checkpoint folder: continue exactly where it was. latest without a
    # checkpoint starts from the beginning.
    resume: str | None = None
    # Steps between checkpoints: what a crash can cost; 0 for none.
    checkpointing_steps: int = 500
    # Keep this many of the newest checkpoints; all unless given.
    checkpoints_total_limit: int | None = None
    # Steps between lines of metrics.jsonl, each a mean since the last; small values make a GPU
    # wait.
    logging_steps: int = 10
    # Also report what metrics.jsonl and validation/ get to these: tensorboard writes into the
    # output_dir; wandb sends it to wandb.ai, your prompts with it. Each needs its library.
    report_to: tuple[Tracker, ...] = ()
    # Prompts drawn while training into validation/, the base's pictures above the adapter's, always
    # from the same noise; a sample asked for in between shows the instance prompt without them.
    validation_prompt: tuple[str, ...] = ()
    # Steps between validation pictures, which take as long as many steps, and once more at the end;
    # 0 for none.
    validation_steps: int = 0
    # Denoising steps of class and validation pictures: 20-30 are faster and a little rougher.
    num_inference_steps: int = 50
    # How literally class and validation pictures follow the prompt: high is vivid and uniform.
    guidance_scale: float = 7.5


@dataclass(frozen=True)
class ResultConfig:
    """What is made of a finished run, and who gets it."""

    # Also write the concept as a LoRA, for A1111, ComfyUI and diffusers without this library. fp16
    # rounds it to three digits and is what people share: 13 MB for SD v1.5 at rank 32, 360 at full
    # rank. fp32 is exact and twice as large. With --method lora it is the result itself, in fp32.
    lora_file: Literal["fp16", "fp32", "no"] = "fp16"
    # At the end, draw the validation prompts (the first four; else the instance prompt) with the
    # base and with the concept, for the card: 4 x num_inference_steps passes through the UNet for
    # each prompt.
    sample_at_end: bool = True
    # Licence of the result, by its identifier on the hub (such as openrail, or other); that of the
    # base unless given, where it is one of the well-known ones.
    license: str | None = None
    # Put the result on the Hugging Face hub at the end: concept, LoRA, card, samples, options and
    # metrics, never the training pictures or checkpoints. Needs a login that may write; checked,
    # and the repository made, before training.
    push_to_hub: bool = False
    # Name of the repository, user/name or name; that of the output_dir unless given. With several
    # --concepts each has its own, and its name comes after this one.
    hub_model_id: str | None = None
    # Make the repository private: a concept of a person should be.
    hub_private: bool = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Teach a Stable Diffusion model a new concept from a few pictures.

    `accelerate launch trainer/train_dreambooth_loldu.py` and `python -m trainer` take the same
    flags. A later flag overrides an earlier one, and every flag overrides --preset.
    """

    base: BaseModelConfig = field(default_factory=BaseModelConfig)
    instance: InstanceConfig
    prior: PriorConfig = field(default_factory=PriorConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    run: RunConfig
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    result: ResultConfig = field(default_factory=ResultConfig)
    # Flags from a file: paper (the paper's Table X), fast, best, low_vram, pocket, or the path of
    # a .toml, such as the config.toml of an earlier run.
    preset: str | None = None


def sections(config: Config) -> dict[str, dict[str, Any]]:
    """The resolved options by section, ready for TOML: no None (TOML has none), paths as text."""

    def plain(value: Any) -> Any:  # noqa: ANN401
        return (
            list(value)
            if isinstance(value, tuple)
            else (str(value) if isinstance(value, Path) else value)
        )

    return {
        section.name: {
            key: plain(value)
            for key, value in dataclasses.asdict(getattr(config, section.name)).items()
            if value is not None and key not in _OF_THIS_START
        }
        for section in dataclasses.fields(config)
        if section.name != "preset"  # its values are in the sections
    }


_OF_THIS_START = {"overwrite", "resume", "doctor_only"}


def to_toml(config: Config) -> str:
    """The resolved options as the text of a `config.toml`, itself a preset."""
    return tomli_w.dumps(sections(config))


def option_names() -> list[str]:
    """The flat name of every option, which is both its flag and its TOML key."""
    return [
        option.name
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(section.type)
        for option in dataclasses.fields(section.type)
    ]
