"""Every option of the two commands; the flags and a preset's keys are these names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """The models that measure; scores of different models do not compare."""

    # CLIP for CLIP-I and CLIP-T: a transformers folder or hub id, or open_clip:NAME/PRETRAINED. The
    # default is the one in the literature.
    clip: str = "open_clip:ViT-B-32-quickgelu/openai"
    # DINO: a transformers ViTModel folder or hub id. The default is the one in the literature.
    dino: str = "facebook/dino-vits16"
    # cuda, cpu or another torch device; a GPU where there is one unless given.
    device: str | None = None
    # Replace the results of an earlier call; without it they are left alone.
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score a folder of generated pictures against a folder of real ones.

    Folders of folders are scored by subject, matched by name, and every subject counts the same.
    """

    # The generated pictures, or a folder for each subject.
    generated: Path
    # The true pictures, or a folder for each subject; best ones the training has not seen.
    real: Path
    # A text file with a prompt a line, for the generated pictures in the order of their names.
    prompts: Path | None = None
    # The one prompt of all pictures. Without it and --prompts a name.txt beside name.png counts,
    # and where there is none CLIP-T is left out.
    prompt: str | None = None
    # The rare token, taken out of the prompts: it means nothing to CLIP.
    token: str | None = None
    # Also write the scores to this file.
    json: Path | None = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw with and without a concept from the same seeds, score both, write a picture of it all.

    Writes report.png and report.json. Every flag overrides --preset.
    """

    # Flags from a file: dreambooth (25 prompts, 4 seeds), pocket, or the path of a .toml.
    preset: str | None = None
    # The concept file that training wrote; the files beside it tell how it was trained.
    concept: Path
    # Folder for report.png and report.json.
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
    # True pictures of the concept; the training pictures unless given. Where there is a folder
    # held_out in it, the pictures in that are scored against, and these are only shown.
    real: Path | None = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
