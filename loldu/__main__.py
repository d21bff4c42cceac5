"""Look into a concept file, check it against a base, cut it down, or export or merge it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from loldu.base.parts import load_changed_parts, load_whole
from loldu.base.source import quiet
from loldu.concept.export import EXPORT_DTYPES, Layout, check_file, export_lora
from loldu.concept.format import read_concept, write_concept
from loldu.concept.in_use import set_strength
from loldu.concept.load import concept_of, load_concept, verify_concept
from loldu.concept.merge import check_folder, save_merged
from loldu.concept.report import report_concept, report_truncation
from loldu.concept.truncate import check_size, truncate
from loldu.errors import LoLDUError

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Inspect:
    """Tell what a concept file holds: its base, its layers, the size of its changes, its metadata.

    Attributes:
        file: The concept, a .safetensors file.
    """

    file: tyro.conf.Positional[Path]

    def run(self) -> str:
        """Return the report."""
        return report_concept(read_concept(self.file), self.file)


@dataclass(frozen=True)
class Verify:
    """Tell whether a concept fits a base model, and which layer differs first if it does not.

    Attributes:
        file: The concept, a .safetensors file.
        base: A diffusers folder, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]

    def run(self) -> str:
        """Compare every layer, and return the good news.

        Raises:
            ConceptError: It does not fit.
        """
        concept = read_concept(self.file)
        verify_concept(load_changed_parts(self.base, concept), self.file)
        return f"{self.file} fits {self.base}: all {len(concept.layers)} layers agree.\n"


@dataclass(frozen=True)
class Export:
    """Write a concept as an ordinary LoRA, which changes every weight exactly as the concept does.

    The LoRA holds the concept at strength 1. It is hundreds of times as large as the concept, for
    it carries the factors that the concept derives from the base.

    Attributes:
        file: The concept, a .safetensors file.
        base: The base it was trained on: a diffusers folder or a hub id.
        out: What to write: a .safetensors file, or a folder for the layout peft.
        layout: kohya for A1111, ComfyUI and their kin; diffusers for `load_lora_weights`; peft for
            `PeftModel.from_pretrained`, with a folder for each component.
        dtype: float32 keeps all that was trained; float16 and bfloat16 halve the file.
        overwrite: Replace what stands at `out`.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    layout: Layout
    dtype: Dtype = "float32"
    overwrite: bool = False

    def run(self) -> str:
        """Load the concept onto its base, write the LoRA and say so.

        Raises:
            ConceptError: The concept does not fit, or the file exists.
        """
        if self.layout != "peft":  # say so before the base is loaded, which takes a while
            check_file(self.out, self.overwrite)
        base = load_changed_parts(self.base, read_concept(self.file))
        load_concept(base, self.file)
        dtype = EXPORT_DTYPES[self.dtype]
        export_lora(base, self.out, self.layout, dtype=dtype, overwrite=self.overwrite)
        return f"Wrote {self.out} ({self.layout} layout, {self.dtype}).\n"


@dataclass(frozen=True)
class Truncate:
    """Write the nearest concept of fewer directions, and tell its exact error.

    The error is ‖delta_W - delta_W'‖ / ‖delta_W‖, for every component of the pipeline and in total.

    Attributes:
        file: The concept, a .safetensors file.
        base: The base it was trained on: a diffusers folder or a hub id.
        out: The .safetensors file to write.
        r: How many directions to keep in every layer.
        max_error: In place of r: keep in every layer as few as leave its relative error no greater.
        overwrite: Replace what stands at `out`.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    r: int | None = None
    max_error: float | None = None
    overwrite: bool = False

    def run(self) -> str:
        """Load the concept onto its base, truncate it, write the result and tell the error.

        Raises:
            ConceptError: The concept does not fit, r or max_error is not sound, or the file exists.
        """
        check_size(self.r, self.max_error)
        check_file(self.out, self.overwrite)
        before = read_concept(self.file)
        base = load_changed_parts(self.base, before)
        load_concept(base, self.file)
        result = truncate(base, self.r, max_error=self.max_error)
        after = replace(
            concept_of(base, "truncated", before.metadata), base=before.base, config=before.config
        )
        write_concept(after, self.out, overwrite=self.overwrite)
        return f"Wrote {self.out}:\n" + report_truncation(before, result)


@dataclass(frozen=True)
class Merge:
    """Write a whole pipeline with a concept in its weights, for programs that know no adapters.

    It is as large as the base, and loads with `DiffusionPipeline.from_pretrained`.

    Attributes:
        file: The concept, a .safetensors file.
        base: The base it was trained on: a diffusers folder or a hub id.
        out: The folder to write; it must not exist.
        strength: How much of the concept: 1 as trained.
        dtype: Of all weights, which are loaded in it; sums are made in float32 and rounded once.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    strength: float = 1.0
    dtype: Dtype = "float32"

    def run(self) -> str:
        """Load the concept onto its base, write the pipeline and say so.

        Raises:
            ConceptError: The concept does not fit, or the folder exists.
        """
        check_folder(self.out)
        read_concept(self.file)
        pipeline = load_whole(self.base, EXPORT_DTYPES[self.dtype])
        load_concept(pipeline, self.file)
        set_strength(pipeline, self.strength)
        with quiet():
            save_merged(pipeline, self.out)
        return f"Wrote {self.out} ({self.dtype}, strength {self.strength:g}).\n"


Command = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Truncate, tyro.conf.subcommand("truncate")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command, and tell a person's mistake in one sentence with status 2."""
    command: Inspect | Verify | Export | Truncate | Merge = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]  a union of annotated types is a form
        args=argv,
        prog="python -m loldu",
        description=__doc__,
        use_underscores=True,
    )
    try:
        sys.stdout.write(command.run())
    except LoLDUError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        place, reason = error.filename or "a file", error.strerror or error
        sys.stderr.write(f"{place} cannot be read or written ({reason}): choose another place\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; nothing was written.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
