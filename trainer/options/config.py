"""Every option of the trainer, with its trade-off; flags and TOML keys have these names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from loldu.base.config import BaseModelConfig
from loldu.options import option, options, toml_value
from trainer.methods import MethodName as Method
from trainer.options.captions import CaptionsConfig
from trainer.options.fleet import FleetConfig
from trainer.options.scores import ScoresConfig

Rank = int | Literal["full"]
Tracker = Literal["tensorboard", "wandb"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
Compile = Literal["no", "blocks", "unet"]

DIAGONALS: tuple[Method, ...] = ("loldu", "svfit")
ADAPTERS: tuple[Method, ...] = (*DIAGONALS, "lora")


@dataclass(frozen=True)
class InstanceConfig:
    """The pictures of the concept."""

    # Folder with 3-5 pictures (JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP, GIF); vary pose and
    # background, or the background becomes part of the concept. name.txt beside name.jpg, or else
    # its line of metadata.jsonl, is the prompt of that picture; name-masklabel.png marks what to
    # learn of it.
    instance_data_dir: Path | None = option(
        None, resume="may_change", publish="never", per_concept=True
    )
    # A rare token and the class, e.g. "a photo of sks dog"; needed unless every picture has its
    # own prompt. A common word instead of a rare token brings its old meaning along.
    instance_prompt: str | None = option(None, per_concept=True)
    # The rare token in the prompt, for the concept file and the card. Not needed with
    # --placeholder_token, or if a class prompt differs from the instance prompt by the token alone.
    token: str | None = option(None, per_concept=True)
    # A TOML file with a table for each of several concepts, trained together: every row of a batch
    # has its own concept, so that N concepts cost a batch of N instead of N runs, and each one
    # learns what it would learn alone. A table may have instance_data_dir, instance_prompt, token,
    # placeholder_token, initializer_token, class_prompt, class_data_dir, init_concept,
    # init_predictor, validation_prompt and drift_prompt.
    concepts: Path | None = option(None, resume="may_change", publish="never")
    # A made-up word of the prompt, such as <dog>, whose embedding is trained too: more likeness at
    # equal steps, for a second small file (learned_embeds.safetensors) and a text encoder pass in
    # every step.
    placeholder_token: str | None = option(None, per_concept=True)
    # The word that the new one starts from, one token in the base: the class, such as dog.
    initializer_token: str | None = option(
        None,
        methods=(*ADAPTERS, "textual_inversion", "peft"),
        needs="placeholder_token",
        per_concept=True,
    )
    # Side in pixels: the base's own (512 for SD v1.x, 1024 for newer ones) is safest, smaller is
    # faster and coarser.
    resolution: int = option(512, at_least=8, multiple_of=8)
    # Train every picture in its own shape instead of a square: its aspect ratio is kept up to
    # rounding, and so is the area of --resolution. The rows of a pass have one shape, so that
    # several --concepts, or class pictures of another shape, need a pass of their own each. Squares
    # by default.
    aspect_buckets: bool = False
    # Crop the middle of oblong pictures. --no_center_crop takes several random crops: better if
    # the subject is off centre or fills the frame, worse if a crop can miss it.
    center_crop: bool = True
    # Also train on mirrored pictures: more variety, wrong for text and asymmetric subjects.
    random_flip: bool = False
    # Weight of the black parts of a mask; white counts 1. 0 never learns the background and may
    # fill it with anything, 0.1 keeps it in place at little cost, 1 ignores masks.
    unmasked_weight: float = option(0.1, at_least=0, at_most=1)
    # What the black parts of a mask are trained on. images: the picture. base: the answer of the
    # frozen base, so that the background stays as it draws it; it takes one more forward pass, and
    # --unmasked_weight 1 goes well with it.
    unmasked_target: Literal["images", "base"] = "images"


@dataclass(frozen=True)
class PriorConfig:
    """Prior preservation: keep the class as it was."""

    # Train on class pictures too: less drift of the class and of other prompts, for up to twice
    # the time per step.
    with_prior_preservation: bool = False
    # Prompts of the class pictures, e.g. "a photo of a dog"; several prompts (backgrounds, other
    # classes) protect more of the model than one.
    class_prompt: tuple[str, ...] = option((), per_concept=True)
    # Folder of your own class pictures, used unchanged; pictures without a caption take the class
    # prompts in turn. Generated pictures go into it if it is empty or absent, for later runs
    # (otherwise they go into the output_dir).
    class_data_dir: Path | None = option(
        None, resume="may_change", publish="never", per_concept=True
    )
    # Number of class pictures to generate: more protect more and are drawn once; 100-200 is usual.
    num_class_images: int = option(100, at_least=1)
    # Weight of the prior loss: higher keeps the class, lower learns the concept faster.
    prior_loss_weight: float = option(1.0, at_least=0)
    # Class pictures per step; train_batch_size by default.
    prior_batch_size: int | None = option(None, at_least=1)
    # Training target of the class pictures. images: the noise in them, as in DreamBooth. base: the
    # frozen base's own prediction, which starts at zero loss and so only resists drift, for one
    # more forward pass of the class pictures.
    prior_target: Literal["images", "base"] = "images"
    # Class pictures. drawn: the base draws them from the class prompts, or they are in
    # class_data_dir. concept: the concept's own pictures, with captions without the token, keep the
    # base's answers (differential output preservation); nothing is drawn. Needs --prior_target
    # base.
    class_pictures: Literal["drawn", "concept"] = "drawn"


@dataclass(frozen=True)
class AdapterConfig:
    """The training method and its adapter."""

    # loldu: a diagonal between fixed LDU factors, tens of kilobytes. svfit: the same between fixed
    # singular vectors, slower to set up. lora: two new matrices, megabytes, the usual yardstick.
    # dreambooth: every weight of the UNet, gigabytes. textual_inversion: only the embedding of
    # --placeholder_token, the weakest. peft: any method of PEFT that --adapter_config describes.
    method: Method = "loldu"
    # A JSON file with the options of a method of PEFT, such as {"peft_type": "IA3"}: IA3, VERA,
    # OFT, LOKR, LOHA, LORA with use_dora, and others that change target modules. Without
    # target_modules it adapts the attention. Such a result has no LoRA file.
    adapter_config: Path | None = option(
        None, methods=("peft",), resume="may_change", publish="never"
    )
    # Diagonal entries per layer, at most the size of the layer: more learn more and make the file
    # larger; full takes all of them and is close to LoRA in strength. For lora, the width of its
    # matrices.
    rank: Rank = option(32, methods=ADAPTERS, at_least=1)
    # The update is scaled by alpha / rank, which acts as a multiplier of the learning rate; equal
    # to the rank (scale 1) by default. With --rank full it is divided by the rank of the largest
    # layer, the same for every layer.
    alpha: float | None = option(None, methods=ADAPTERS, above=0)
    # A concept file, of this base and method, to start from instead of the base: continue another
    # run's concept, with other pictures or at a larger rank. Start and concept are equal, because
    # the first directions are the same at every rank. Adam starts anew, and weight decay pulls to
    # the base. --resume continues a run exactly; this does not.
    init_concept: Path | None = option(
        None, methods=DIAGONALS, resume="may_change", publish="never", per_concept=True
    )
    # A predictor of this base, which `python -m trainer.predictor` trains: it reads the pictures,
    # and the run starts from the concept that it predicts. Few steps at a smaller learning rate
    # are enough then, such as 25. The --rank must be at least the predictor's.
    init_predictor: Path | None = option(
        None, methods=DIAGONALS, resume="may_change", publish="never", per_concept=True
    )
    # Start of the diagonal: ldu takes that of the factorization, the others are the paper's
    # ablation.
    diagonal_init: Literal[
        "ldu",
        "uniform",
        "normal",
        "constant",
        "zeros",
        "ones",
        "standard_uniform",
        "standard_normal",
    ] = option("ldu", methods=DIAGONALS)
    # preserve: training starts exactly at the base, whatever the init. perturb: every init except
    # ldu starts away from it; the authors' code does so for zeros, ones and the standard ones, with
    # worse results.
    residual: Literal["preserve", "perturb"] = option("preserve", methods=DIAGONALS)
    # partial: pivots for rows. complete: for columns too, which puts the largest directions first
    # and works on singular layers, for a slower set-up.
    pivoting: Literal["partial", "complete"] = option("partial", methods=("loldu",))
    # Scale all directions so that a step changes the weight equally along each: LDU's lengths
    # differ by a factor of ten to forty, and the long ones learn and harm most. More likeness at
    # less drift on the embedded base, at a learning rate several times as large; not in the paper.
    normalize_directions: bool = option(False, methods=DIAGONALS)
    # Also train one scale per layer (r + 1 parameters, as in the paper). Without it, only weight
    # decay makes the preserving inits differ.
    train_scale: bool = option(True, methods=DIAGONALS)
    # Ends of the names of the adapted layers; the attention projections of the base's network by
    # default. Adding ff.net.0.proj ff.net.2 on a UNet learns texture better and drifts more.
    target_modules: tuple[str, ...] = option(("to_k", "to_q", "to_v", "to_out.0"), methods=ADAPTERS)
    # Also train the attention of the base's text encoders (one, or two), with the same method:
    # learns the meaning of a word faster, but shifts the meaning of other words and costs a text
    # encoder pass in every step.
    train_text_encoder: bool = option(False, methods=(*ADAPTERS, "dreambooth"))


@dataclass(frozen=True)
class OptimizationConfig:
    """How it is trained."""

    # Optimizer steps: too few miss the concept, too many copy the pictures with their backgrounds.
    max_train_steps: int = option(1000, at_least=1, resume="same_unless_constant")
    # Concept pictures per step and process: larger is steadier, and slower per step.
    train_batch_size: int = option(1, at_least=1)
    # Forward passes per optimizer step: a larger batch without its memory, but with all of its
    # time.
    gradient_accumulation_steps: int = option(1, at_least=1)
    # adamw: fused, the fastest here. adamw8bit (bitsandbytes): keeps its state of tensors from 4096
    # numbers on in 8 bits, which saves memory with full models and large LoRAs and none with
    # diagonals, which are shorter. prodigy (prodigyopt): finds the learning rate itself with
    # --learning_rate 1; it reads numbers back for every tensor in every step, which makes a GPU
    # wait. Install the last two with pip install 'loldu[optimizers]'.
    optimizer: OptimizerName = "adamw"
    # Diagonals need far more than LoRA's 1e-4: 5e-4 on SD v1.5, 1e-2 on very small bases.
    learning_rate: float = option(5e-4, above=0)
    # Learning rate of the text encoder, often lower; that of the UNet by default.
    text_encoder_lr: float | None = option(
        None, above=0, methods=(*ADAPTERS, "dreambooth"), needs="train_text_encoder"
    )
    # Learning rate of the new word's embedding; 5e-3 is usual for textual_inversion. That of the
    # UNet by default.
    word_lr: float | None = option(
        None, above=0, methods=(*ADAPTERS, "textual_inversion", "peft"), needs="placeholder_token"
    )
    # constant lets you stop anywhere; cosine and linear fall to zero at max_train_steps and give a
    # cleaner end.
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    # Steps in which the learning rate rises from zero; a few keep Adam from overshooting at first.
    lr_warmup_steps: int = option(0, at_least=0)
    # Pulls diagonals toward the base model (and LoRA matrices toward zero); 0 turns it off.
    adam_weight_decay: float = option(0.01, at_least=0)
    # Shorten gradients that are longer than this, against rare bad steps; 0 turns it off.
    max_grad_norm: float = option(1.0, at_least=0)
    # Largest Frobenius norm of the change of each adapted weight (the paper's Eq. 10-12): a hard
    # limit on drift that costs likeness. No limit by default.
    max_delta_norm: float | None = option(None, above=0, methods=DIAGONALS)
    # Add this much of the squared Frobenius norms of all changes of weights to the loss: drift is
    # restrained where it is cheapest, not at a wall as with --max_delta_norm. metrics.jsonl has the
    # norm of a run without it. 0 turns it off.
    delta_norm_penalty: float = option(0.0, at_least=0, methods=DIAGONALS)
    # mse: the squared error. huber: the squared error of small errors, and straight lines beyond
    # --huber_delta, so that strange pictures and details count less. Smooth L1 with beta is
    # huber with huber_delta = beta, divided by 2 beta, which AdamW does not notice.
    loss: Literal["mse", "huber"] = "mse"
    # Error from which the Huber loss is straight: small values come close to the absolute error.
    huber_delta: float = option(0.1, above=0)
    # Smallest timestep that is trained, of 1000: 0 has next to no noise and teaches fine grain.
    min_timestep: int = option(0, at_least=0, at_most=999)
    # Timesteps below this one are trained, of 1000, which has only noise left: large ones teach
    # layout and colour, small ones texture.
    max_timestep: int = option(1000, at_least=1, at_most=1000)
    # Min-SNR weighting (5 is usual) evens out the noise levels: shape and colour are learned
    # faster, fine grain counts less. The plain loss by default.
    snr_gamma: float | None = option(None, above=0)
    # Shift the noise of each channel of each picture by this much noise (0.05-0.1 is usual), to
    # learn very dark and very bright pictures; more washes colours out. 0 turns it off.
    noise_offset: float = option(0.0, at_least=0)
    # Draw and save the running average of the trained parameters instead of their last values,
    # e.g. 0.99 for about the last 100 steps: steadier at high learning rates, slower to learn. Off
    # by default.
    ema_decay: float | None = option(None, above=0, below=1)
    # Precision of the frozen base; trained parameters stay fp32. fp16: CUDA only, half the memory.
    # bf16: the same without loss scaling, coarser. no: fp32, right for CPUs.
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    # Seed of crops, noise, timesteps and order: the same seed and flags give the same adapter.
    seed: int = option(42, at_least=0)


@dataclass(frozen=True)
class PerformanceConfig:
    """Speed and memory; the result changes by rounding only."""

    # Compute activations again in the backward pass instead of keeping them: much less memory for
    # about a third more time.
    gradient_checkpointing: bool = False
    # torch.compile, which pays in long runs. blocks: compile the transformer blocks, in about a
    # minute. unet: compile the whole network, slower to start and faster afterwards. Needs a C++
    # compiler on CPUs.
    compile: Compile = "no"
    # Use only algorithms of torch that give the same bits each time, so that a run on a GPU can be
    # repeated and resumed exactly. Slower on a GPU; it changes nothing on a CPU.
    deterministic: bool = False
    # Out of memory. stop: say how much was needed and what to try. adapt: repeat the step with
    # gradient checkpointing, then with half the rows of a batch at a time, down to one: the same
    # training, in more time.
    on_oom: Literal["stop", "adapt"] = "stop"


@dataclass(frozen=True)
class RunConfig:
    """The output folder, and when a run writes to it."""

    # Folder of the run: the result (concept file, LoRA, README.md, samples), config.toml,
    # metrics.jsonl, summary.json, checkpoints; with --concepts, one folder per concept inside.
    # Required unless --doctor_only is given.
    output_dir: Path = field(metadata={"publish": "never"})
    # Replace the run in output_dir, and push to a repository that has files. Without it (and
    # without --resume) the command stops instead.
    overwrite: bool = option(False, saved=False)
    # Report problems of the pictures and stop: no base is loaded and nothing is written.
    doctor_only: bool = option(False, saved=False)
    # latest, or the path of a checkpoint folder: continue exactly from there. latest without a
    # checkpoint starts from the beginning.
    resume: str | None = option(None, saved=False)
    # Steps between checkpoints: a crash costs at most this many; 0 writes none.
    checkpointing_steps: int = option(500, at_least=0)
    # Keep this many of the newest checkpoints; all by default.
    checkpoints_total_limit: int | None = option(None, at_least=1)
    # Steps between lines of metrics.jsonl, each a mean since the last line; small values make a
    # GPU wait.
    logging_steps: int = option(10, at_least=1)
    # Also send metrics and validation pictures to a tracker. tensorboard: written into the
    # output_dir. wandb: sent to wandb.ai, with your prompts. Each needs its library.
    report_to: tuple[Tracker, ...] = ()
    # Prompts to draw into validation/ while training, the base's pictures above the adapter's,
    # always from the same noise. A sample that you ask for in between shows the instance prompt if
    # there are none.
    validation_prompt: tuple[str, ...] = option((), resume="same_if_scored", per_concept=True)
    # Steps between validation pictures, which take as long as many steps; they are drawn at the end
    # too. 0 draws none.
    validation_steps: int = option(0, at_least=0)
    # Draw validation pictures, scores and samples with the concept in every picture, as other
    # programs do with an exported LoRA. By default only prompts with the token get it.
    always_on: bool = option(False, resume="same_if_scored")
    # Denoising steps of class and validation pictures: 20-30 are faster and a little rougher.
    num_inference_steps: int = option(50, at_least=1, resume="same")
    # How literally class and validation pictures follow the prompt: high is vivid and uniform.
    guidance_scale: float = option(7.5, at_least=0, resume="same")


@dataclass(frozen=True)
class ResultConfig:
    """The files of a finished run, and where they go."""

    # Also write the concept as a LoRA, for A1111, ComfyUI and diffusers without this library. fp16
    # rounds it to three digits and is what people share: 13 MB for SD v1.5 at rank 32, 360 at full
    # rank. fp32 is exact and twice as large. With --method lora the result itself is a LoRA, in
    # fp32.
    lora_file: Literal["fp16", "fp32", "no"] = "fp16"
    # At the end, draw the validation prompts (the first four, or else the instance prompt) with the
    # base and with the concept, for the card: 4 x num_inference_steps passes through the UNet for
    # each prompt.
    sample_at_end: bool = True
    # Licence of the result, by its identifier on the Hub (such as openrail, or other). By default
    # that of the base, if it is one of the well-known bases.
    license: str | None = None
    # Upload the result to the Hugging Face Hub at the end: concept, LoRA, card, samples, options
    # and metrics, never the training pictures or checkpoints. Needs a login with write access; it
    # is checked, and the repository is created, before training.
    push_to_hub: bool = False
    # Name of the repository, user/name or name; that of the output_dir by default. Each of several
    # --concepts has its own repository, with the concept's name at the end.
    hub_model_id: str | None = None
    # Make the repository private: recommended for the concept of a person.
    hub_private: bool = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Teach a Stable Diffusion model a new concept from a few pictures.

    `accelerate launch trainer/train_dreambooth_loldu.py` and `python -m trainer` take the same
    flags. A later flag overrides an earlier one, and every flag overrides --preset.
    """

    base: BaseModelConfig = field(default_factory=BaseModelConfig)
    instance: InstanceConfig = field(metadata={"publish": "concept"})
    captions: CaptionsConfig = field(
        default_factory=CaptionsConfig, metadata={"publish": "concept"}
    )
    prior: PriorConfig = field(default_factory=PriorConfig, metadata={"publish": "concept"})
    adapter: AdapterConfig = field(default_factory=AdapterConfig, metadata={"publish": "concept"})
    optimization: OptimizationConfig = field(
        default_factory=OptimizationConfig, metadata={"publish": "concept"}
    )
    performance: PerformanceConfig = field(
        default_factory=PerformanceConfig, metadata={"resume": "may_change"}
    )
    run: RunConfig = field(metadata={"resume": "may_change"})
    scores: ScoresConfig = field(
        default_factory=ScoresConfig, metadata={"resume": "same_if_scored"}
    )
    fleet: FleetConfig = field(
        default_factory=FleetConfig, metadata={"resume": "may_change", "publish": "never"}
    )
    result: ResultConfig = field(default_factory=ResultConfig, metadata={"resume": "may_change"})
    # Options from a file: one of the presets above, or the path of a .toml file, such as the
    # config.toml of an earlier run.
    preset: str | None = None


def sections(config: Config) -> dict[str, dict[str, Any]]:
    """Return the options by section, ready for TOML: without None, with paths as strings."""
    tables: dict[str, dict[str, Any]] = {}
    for each in options(type(config)).values():
        if not each.section or not each.saved:  # the values of a preset are in the sections
            continue
        value = getattr(getattr(config, each.section), each.name)
        if value is not None:
            tables.setdefault(each.section, {})[each.name] = toml_value(value)
    return tables


def to_toml(config: Config) -> str:
    """Return the options as the content of a `config.toml`, which is a preset too."""
    return tomli_w.dumps(sections(config))
