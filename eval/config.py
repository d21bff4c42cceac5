"""Every option of the commands; the flags and a preset's keys are these names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval.encoders.cache import default_cache
from eval.metrics.bootstrap import Aggregate
from eval.metrics.functional import Pairs

CLIP = "open_clip:ViT-B-32-quickgelu/openai"
DINO = "timm:vit_small_patch16_224.dino"


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """The models that measure; scores of different models do not compare."""

    # CLIP for CLIP-I and CLIP-T: open_clip:NAME/TAG, open_clip:NAME/FILE, or a transformers folder
    # or hub id. The default is the one in the literature.
    clip: str = CLIP
    # DINO: timm:NAME.TAG, timm:NAME/FILE, or a transformers folder or hub id, such as
    # facebook/dinov2-base. The default is the one in the literature.
    dino: str = DINO
    # cuda, cpu or another torch device; a GPU where there is one unless given.
    device: str | None = None
    # Where features are kept, so that no picture is looked at twice by the same model.
    cache_file: Path = field(default_factory=default_cache)
    # Keep none and use none with --no_cache.
    cache: bool = True


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """How scores are made of features: DreamBooth's way, unless asked (docs/eval.md)."""

    # Every generated picture with every real one, or each with the one at its place by name.
    pairs: Pairs = "all"
    # macro: every subject counts the same. micro: every picture does.
    aggregate: Aggregate = "macro"
    # Multiply CLIP-T and cut it at 0, as CLIPScore does: 2.5, or 100. Raw cosines unless given.
    clip_t_scale: float | None = None
    # Leave the rare token in the prompts, though it means nothing to CLIP.
    keep_token: bool = False
    # Leave out generated pictures that are black all over, which safety checkers make.
    skip_black: bool = False
    # Leave out pictures that cannot be read, and count them; else they are an error.
    skip_bad: bool = False
    # Resamplings behind the intervals: more are smoother, and slower.
    bootstrap_samples: int = 2000


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where results go, beside the table that is printed."""

    # Write the result, with every picture's scores; - prints it in place of the table.
    json: Path | None = None
    # Write a page with the pictures beside the real ones most like them: one file, no network.
    html: Path | None = None
    # Replace the results of an earlier call; without it they are left alone.
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """How pictures are drawn."""

    # Every prompt is drawn from each of these seeds: more are steadier, and slower.
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    # Denoising steps: 20-30 are faster than 50 and a little rougher.
    num_inference_steps: int = 50
    # How literally pictures follow the prompt: high is vivid and uniform.
    guidance_scale: float = 7.5
    # Pictures at once: costs memory, changes nothing else.
    batch_size: int = 4
    # Precision of the base while drawing: fp16 and bf16 are for GPUs.
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Score a folder of generated pictures against a folder of real ones.

    Folders of folders are scored by subject, matched by name.
    """

    # The generated pictures, or a folder for each subject.
    generated: Path
    # The true pictures, or a folder for each subject; best ones the training has not seen.
    real: Path
    # The prompts of the generated pictures: a text file with a line a picture, in the order of
    # their names, or a .json file of one object from file names, with or without ending, to
    # prompts. Of folders of folders every one is given the same.
    prompts: Path | None = None
    # The one prompt of all pictures. Without it and --prompts a name.txt beside name.png counts, or
    # the folder's metadata.jsonl; where there is none CLIP-T is left out.
    prompt: str | None = None
    # The rare token, taken out of the prompts.
    token: str | None = None

    models: ModelsConfig = field(default_factory=ModelsConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Draw with and without a concept from the same seeds, score both, and show them.

    Writes pictures, report.png, report.html and report.json into --output_dir. A call that was
    stopped goes on with the pictures that are missing. Every flag overrides --preset.
    """

    # Flags from a file: dreambooth (25 prompts, 4 seeds), pocket, or the path of a .toml.
    preset: str | None = None
    # The concept file that training wrote; the files beside it tell how it was trained.
    concept: Path
    # Folder for the results.
    output_dir: Path
    # The base it was trained on, unless the concept's own run says which.
    pretrained_model_name_or_path: str | None = None
    # What is asked of the concept; {token} and {class_name} are filled in.
    prompts: tuple[str, ...] = ()
    # What should be drawn as before; best with the class itself among it.
    other_prompts: tuple[str, ...] = ()
    # The rare token, unless the prompts of the concept's run tell.
    token: str | None = None
    # The class, unless the prompts of the concept's run tell.
    class_name: str | None = None
    # True pictures of the concept; the training pictures unless given. Where there is a folder
    # held_out in it, the pictures in that are scored against, and these are only shown.
    real: Path | None = None
    # Replace the results of an earlier call, pictures too where they were drawn in another way.
    overwrite: bool = False

    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Score many subjects by the prompts and real pictures of a benchmark.

    With --concepts the pictures are drawn first, into --pictures; a call that was stopped goes on
    with those that are missing.
    """

    # A folder that holds DreamBooth's set (prompts_and_classes.txt) or CustomConcept101
    # (dataset.json), or a .toml file of your own; docs/eval.md has its form.
    suite: Path
    # The generated pictures: a folder for each subject, named as the suite names it. Which prompt a
    # picture has is told by its name (012-3.png: prompt 12, counted from 0), by a name.txt beside
    # it, by metadata.jsonl, or by a prompts.json as CustomConcept101 has it.
    pictures: Path
    # Folder of concept files to draw with: NAME.safetensors or NAME/concept.safetensors, by the
    # suite's names. Unless given, the pictures are there already.
    concepts: Path | None = None
    # Only these subjects; all unless given.
    subjects: tuple[str, ...] = ()
    # The base of the concepts, unless their own runs say which.
    pretrained_model_name_or_path: str | None = None
    # The rare token of every subject.
    token: str = "sks"
    # Draw pictures anew that were drawn in another way.
    redraw: bool = False

    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Score real pictures against real ones: what a perfect model would reach on them.

    A picture is not compared with itself. The published numbers for DreamBooth's set are printed
    beside; on that set yours should agree with them before you trust any other.
    """

    # A folder of real pictures, or a folder for each subject.
    real: Path
    # Leave out pictures that cannot be read, and count them; else they are an error.
    skip_bad: bool = False

    models: ModelsConfig = field(default_factory=ModelsConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Say by how much results differ, and whether that is more than chance.

    The first is what the others are compared with. Pictures of one subject and one name are a pair.
    """

    # Files that --json or a report wrote, two or more.
    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    # What the results are called, in their order; their file or folder names unless given.
    names: tuple[str, ...] = ()
    # Draw the scores and their intervals into this .svg file.
    plot: Path | None = None
    # Resamplings behind the intervals.
    bootstrap_samples: int = 2000

    output: OutputConfig = field(default_factory=OutputConfig)
