"""Look into a concept file, check it against a base model, or export it as an ordinary LoRA."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .base import load_base
from .concept import load_concept, verify_concept
from .concept_file import ConceptError, read_concept
from .export import EXPORT_DTYPES, Layout, check_file, export_lora
from .report import report_concept

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
        verify_concept(load_base(self.base, concept), self.file)
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
        base = load_base(self.base, read_concept(self.file))
        load_concept(base, self.file)
        dtype = EXPORT_DTYPES[self.dtype]
        export_lora(base, self.out, self.layout, dtype=dtype, overwrite=self.overwrite)
        return f"Wrote {self.out} ({self.layout} layout, {self.dtype}).\n"


Command = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command, and tell a person's mistake in one sentence with status 2."""
    command: Inspect | Verify | Export = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]  a union of annotated types is a form
        args=argv,
        prog="python -m loldu",
        description=__doc__,
        use_underscores=True,
    )
    try:
        sys.stdout.write(command.run())
    except ConceptError as error:
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
