"""Options of the commands; flags and the keys of presets have these names."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval.metrics.metric import Aggregate, Pairs
from loldu.options import option

CLIP = "open_clip:ViT-B-32-quickgelu/openai"
DINO = "timm:vit_small_patch16_224.dino"
ProtocolName = Literal["peft", "dreambooth", "customconcept", "dreambench++"]


def default_cache() -> Path:
    """Return the path of the feature cache in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "loldu" / "features.sqlite"


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """The models that compute features; scores of different models do not compare."""

    # CLIP, for CLIP-I, CLIP-T and drift: open_clip:NAME/TAG, open_clip:NAME/FILE, a transformers
    # folder or hub id of CLIP or SigLIP, or clip-b, clip-l or siglip2. Published scores use the
    # default.
    clip: str = CLIP
    # DINO: timm:NAME.TAG, timm:NAME/FILE, a transformers folder or hub id, or dino, dinov2 or
    # dinov3. Published scores use the default.
    dino: str = DINO
    # Masks of the subject in generated pictures, to score it without its background: a folder of
    # masks, or a model for image segmentation or mask generation (a transformers folder or hub id,
    # such as facebook/sam-vit-base). Real pictures have name-masklabel.png beside them, as for
    # training, or get a mask by the model.
    segmenter: str | None = None
    # Vision-language model that judges pictures by a rubric: a transformers folder or hub id with a
    # chat template, such as Qwen/Qwen2.5-VL-3B-Instruct. It runs here, and is slow without a GPU.
    judge: str | None = None
    # How often the judge answers each question, in varied ways at temperature 0.
    judge_repeats: int = option(2, at_least=1, at_most=20)
    # Device: cuda, cpu or another torch device. Default: a GPU if there is one.
    device: str | None = None
    # Cache of features, so that no model encodes the same picture twice.
    cache_file: Path = field(default_factory=default_cache)
    # Use the cache; turn it off with --no_cache.
    cache: bool = True


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """How scores are computed; the defaults are DreamBooth's protocol (docs/eval.md)."""

    # Published protocol, which sets models, pairs, means and drawing as its code does. Other flags
    # win over its models and its drawing.
    protocol: ProtocolName | None = None
    # all: compare every generated picture with every real one. matched: compare each with its own
    # real one: by order of their names, by the number of the prompt in the name (012-3.png has the
    # real picture 12, counted from 0), or with the only one.
    pairs: Pairs = "all"
    # macro: every subject has the same weight. micro: every picture has.
    aggregate: Aggregate = "macro"
    # Multiply CLIP-T by this factor and raise negative values to 0, as CLIPScore does: 2.5, or 100.
    # Default: raw cosines.
    clip_t_scale: float | None = option(None, above=0)
    # Keep the rare token in the prompts, although it means nothing to CLIP.
    keep_token: bool = False
    # Leave out completely black generated pictures, as safety checkers return them.
    skip_black: bool = False
    # Leave out and count unreadable pictures; by default they are an error.
    skip_bad: bool = False
    # Resamplings for the intervals: more are smoother and slower.
    bootstrap_samples: int = option(2000, at_least=1)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Files to write besides the printed table."""

    # Write the result with the scores of every picture; - prints it instead of the table.
    json: Path | None = None
    # Write a page with each picture beside the most similar real one: one file, works offline.
    html: Path | None = None
    # Replace results of an earlier call; by default they are an error.
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Scores that a build expects."""

    # Exit with status 1 if a mean is worse than its limit: dino=.6 if it is under .6, drift=.05 if
    # it is over .05, for there lower is better. The result file lists them under limits.
    fail_under: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """How pictures are generated."""

    # Generate every prompt with each of these seeds: more are more precise and slower.
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    # Denoising steps: 20-30 are faster than 50 and slightly worse.
    num_inference_steps: int = option(50, at_least=1)
    # How strictly pictures follow the prompt: high values are vivid and less varied.
    guidance_scale: float = option(7.5, at_least=0, at_most=100)
    # Pictures at a time: costs memory and changes nothing else.
    batch_size: int = option(4, at_least=1)
    # Precision of the base: fp16 and bf16 are for GPUs.
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    # Let the concept change every picture, as an exported LoRA does, instead of those pictures
    # whose prompt calls it by its token.
    always_on: bool = False


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Score a folder of generated pictures against a folder of real ones.

    If both hold folders, each is a subject, and subjects are matched by name.
    """

    # Folder of generated pictures, or of a folder for each subject.
    generated: Path
    # Folder of real pictures, or of a folder for each subject; best pictures not used for training.
    real: Path
    # Prompts of the generated pictures: a text file with a line for each picture in the order of
    # their names, or a .json file that maps file names, with or without suffix, to prompts. Every
    # subject uses the same file.
    prompts: Path | None = None
    # One prompt for all pictures. Without --prompt and --prompts, the prompt of name.png is read
    # from name.txt beside it or from the folder's metadata.jsonl. No prompts, no CLIP-T.
    prompt: str | None = None
    # Rare token, removed from the prompts.
    token: str | None = None
    # Class word of the subjects, such as dog; a --segmenter with labels finds them by it.
    class_name: str | None = None
    # Folder of training pictures, or of a folder for each subject, to find copies of them. Default:
    # the real ones.
    training: Path | None = None
    # Folder of real pictures of other things that look like the subjects, such as other dogs. The
    # right subject must be found among all subjects and these.
    look_alikes: Path | None = None

    models: ModelsConfig = field(default_factory=ModelsConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Generate pictures with and without a concept from the same seeds, and compare their scores.

    Writes pictures, report.png, report.html and report.json to --output_dir. After an interruption,
    the same command generates only the missing pictures. Every flag overrides --preset.
    """

    # Preset to read flags from: a name of the list above, or the path of a .toml.
    preset: str | None = None
    # Concept file; the files that training wrote beside it say how it was trained.
    concept: Path
    # Folder for the results.
    output_dir: Path
    # Base model of the concept. Default: the base in the config.toml of its training.
    pretrained_model_name_or_path: str | None = None
    # Load the base, revision and VAE that a concept file names if no config.toml is beside it. The
    # file may come from anybody, so by default you name the base.
    trust_concept: bool = False
    # Prompts for the concept; {token} and {class_name} are filled in.
    prompts: tuple[str, ...] = ()
    # Prompts for other things, whose pictures should not change; include the plain class.
    other_prompts: tuple[str, ...] = ()
    # Rare token. Default: the token that training recorded.
    token: str | None = None
    # Class word. Default: the class that training recorded.
    class_name: str | None = None
    # Folder of real pictures. Default: the training pictures. If it has a folder held_out, scores
    # use the pictures in held_out, and the others are only shown.
    real: Path | None = None
    # Also draw the other prompts with the concept always on, as an exported LoRA acts, and score
    # how much of it leaks into them.
    leak: bool = False
    # Folder of real pictures of other things of its class, such as other dogs; the concept must be
    # found among them.
    look_alikes: Path | None = None
    # Replace results of an earlier call, and pictures that were generated with other settings.
    overwrite: bool = False

    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Score many subjects with the prompts and real pictures of a benchmark.

    With --concepts, the pictures are generated into --pictures first. After an interruption, the
    same command generates only the missing pictures.
    """

    # Folder of DreamBooth's dataset (prompts_and_classes.txt) or of CustomConcept101
    # (dataset.json), or a .toml file of your own (docs/eval.md).
    suite: Path
    # Folder of generated pictures, with a folder for each subject of the suite. The prompt of a
    # picture comes from its name (012-3.png: prompt 12, counted from 0), from name.txt beside it,
    # from metadata.jsonl, or from prompts.json as in CustomConcept101.
    pictures: Path
    # Folder of concept files: NAME.safetensors or NAME/concept.safetensors for each subject of the
    # suite. Without it, the pictures must exist already.
    concepts: Path | None = None
    # Subjects to score. Default: all.
    subjects: tuple[str, ...] = ()
    # Base model of the concepts. Default: the base in the config.toml of their training.
    pretrained_model_name_or_path: str | None = None
    # Load the base, revision and VAE that a concept file names if no config.toml is beside it. The
    # file may come from anybody, so by default you name the base.
    trust_concept: bool = False
    # Rare token of every subject.
    token: str = "sks"
    # Folder of real pictures of other things that look like the subjects, such as other dogs. The
    # right subject must be found among all subjects and these.
    look_alikes: Path | None = None
    # Replace pictures that were generated with other settings.
    redraw: bool = False

    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Score real pictures against each other: the scores that a perfect model would reach.

    No picture is compared with itself. The published scores of DreamBooth's dataset are printed for
    comparison: check that you get the same scores on that dataset before you trust others.
    """

    # Folder of real pictures, or of a folder for each subject.
    real: Path
    # Leave out and count unreadable pictures; by default they are an error.
    skip_bad: bool = False

    models: ModelsConfig = field(default_factory=ModelsConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare results: their differences, and whether those are more than chance.

    All others are compared with the first. Pictures are paired by subject and file name.
    """

    # Two or more result files, written by --json or as report.json.
    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    # Names of the results, in their order. Default: file or folder names.
    names: tuple[str, ...] = ()
    # Draw the scores and their intervals to this .svg file.
    plot: Path | None = None
    # Resamplings for the intervals.
    bootstrap_samples: int = option(2000, at_least=1)

    output: OutputConfig = field(default_factory=OutputConfig)
