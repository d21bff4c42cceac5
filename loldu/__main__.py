"""Inspect a concept file, verify it, truncate, export, compare or merge it, or predict one."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from loldu.command import program, run_command
from loldu.concept import ExportDtype, Layout
from loldu.concept.reader import PREDICTOR, read_file
from loldu.concept.report import report_clients, report_concept, report_truncation

# torch takes seconds to import: each command imports it with the functions that need it.


@dataclass(frozen=True)
class Inspect:
    """Show the content of a concept file: base, layers, size of the changes, metadata.

    Attributes:
        file: The concept, a .safetensors file.
    """

    file: tyro.conf.Positional[Path]

    def run(self) -> str:
        """Return the report.

        Raises:
            ConceptError: If the file is missing, damaged, or not a concept.
        """
        return report_concept(read_file(self.file), self.file)


@dataclass(frozen=True)
class Verify:
    """Check whether a concept fits a base model, and name the first layer that differs.

    Attributes:
        file: The concept, a .safetensors file.
        base: A diffusers folder, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]

    def run(self) -> str:
        """Compare every layer with the base and return a sentence that they agree.

        Raises:
            ConceptError: If the concept does not fit.
        """
        read_file(self.file)  # a bad file is refused before the slow imports
        from loldu.base.parts import load_changed_parts
        from loldu.concept.format import read_concept
        from loldu.concept.verify import verify_concept

        concept = read_concept(self.file)
        verify_concept(load_changed_parts(self.base, concept), self.file)
        return f"{self.file} fits {self.base}: all {len(concept.layers)} layers agree.\n"


@dataclass(frozen=True)
class Export:
    """Write a concept as an ordinary LoRA, which changes every weight exactly as the concept does.

    The LoRA holds the concept at strength 1. It is hundreds of times as large as the concept,
    because it contains the factors, which the concept derives from the base.

    Attributes:
        file: The concept, a .safetensors file.
        base: The base it was trained on: a diffusers folder or a hub id.
        out: Where to write: a .safetensors file, or a folder for the layout peft.
        layout: kohya is read by A1111, ComfyUI, kohya's scripts and diffusers; diffusers by
            `load_lora_weights` alone (ComfyUI would apply only the text encoder's part); peft by
            `PeftModel.from_pretrained`, with a folder for each component.
        dtype: float32 keeps full precision; float16 and bfloat16 halve the file.
        overwrite: Replace `out` if it exists.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    layout: Layout = "kohya"
    dtype: ExportDtype = "float32"
    overwrite: bool = False

    def run(self) -> str:
        """Load the concept onto its base, write the LoRA and return a sentence that says where.

        Raises:
            ConceptError: If the concept does not fit, or the file exists.
        """
        read_file(self.file)
        from loldu.base.parts import load_changed_parts
        from loldu.concept.export import EXPORT_DTYPES, check_file, export_lora
        from loldu.concept.format import read_concept
        from loldu.concept.load import load_concept

        if self.layout != "peft":  # checked before the base is loaded, which takes a while
            check_file(self.out, self.overwrite)
        base = load_changed_parts(self.base, read_concept(self.file))
        load_concept(base, self.file)
        dtype = EXPORT_DTYPES[self.dtype]
        export_lora(base, self.out, self.layout, dtype=dtype, overwrite=self.overwrite)
        return f"Wrote {self.out} ({self.layout} layout, {self.dtype}).\n"


@dataclass(frozen=True)
class Truncate:
    """Write the nearest concept with fewer directions, and report its exact error.

    The error is ‖delta_W - delta_W'‖ / ‖delta_W‖, for every component of the pipeline and in total.

    Attributes:
        file: The concept, a .safetensors file.
        base: The base it was trained on: a diffusers folder or a hub id.
        out: The .safetensors file to write.
        r: How many directions to keep in every layer.
        max_error: Instead of r: keep as few directions in every layer as this relative error
            allows.
        overwrite: Replace `out` if it exists.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    r: int | None = None
    max_error: float | None = None
    overwrite: bool = False

    def run(self) -> str:
        """Load the concept onto its base, write the truncated one and return the errors.

        Raises:
            ConceptError: If the concept does not fit, r or max_error is invalid, or the file
                exists.
        """
        from loldu.base.parts import load_changed_parts
        from loldu.concept.export import check_file
        from loldu.concept.format import read_concept, write_concept
        from loldu.concept.load import load_concept
        from loldu.concept.save import concept_of
        from loldu.concept.truncate import check_size, truncate

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
        parameters_before = sum(layer.delta.numel() for layer in before.layers)
        report = report_truncation(parameters_before, result.summary())
        return f"Wrote {self.out}:\n{report}"


@dataclass(frozen=True)
class Merge:
    """Write a whole pipeline with a concept in its weights, for programs without adapters.

    It is as large as the base, and loads with `DiffusionPipeline.from_pretrained`.

    Attributes:
        file: The concept, a .safetensors file.
        base: The base it was trained on: a diffusers folder or a hub id.
        out: The folder to write; it must not exist.
        strength: Strength of the concept: 1 as trained.
        dtype: Dtype of all weights; sums are computed in float32 and rounded once.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    strength: float = 1.0
    dtype: ExportDtype = "float32"

    def run(self) -> str:
        """Load the concept onto its base, write the pipeline and return a sentence.

        Raises:
            ConceptError: If the concept does not fit, or the folder exists.
        """
        read_file(self.file)
        from loldu.base.parts import load_whole
        from loldu.base.source import quiet
        from loldu.concept.export import EXPORT_DTYPES
        from loldu.concept.load import load_concept
        from loldu.concept.merge import check_folder, save_merged
        from loldu.concept.switch import set_strength

        check_folder(self.out)
        pipeline = load_whole(self.base, EXPORT_DTYPES[self.dtype])
        load_concept(pipeline, self.file)
        set_strength(pipeline, self.strength)
        with quiet():
            save_merged(pipeline, self.out)
        return f"Wrote {self.out} ({self.dtype}, strength {self.strength:g}).\n"


@dataclass(frozen=True)
class CompareClients:
    """Compare a concept with what ComfyUI and A1111 make of its LoRA.

    The LoRA is read by their rules: names of layers, alpha over rank, and the dtype in which they
    multiply. The error is the norm of the difference of all changed weights, over that of the
    concept's changes.

    Attributes:
        file: The concept, a .safetensors file.
        base: The base it was trained on: a diffusers folder or a hub id.
        lora: The LoRA of the layout kohya, such as a run's pytorch_lora_weights.safetensors;
            by default it is exported to a temporary file.
        dtype: Dtype of the default LoRA.
    """

    file: tyro.conf.Positional[Path]
    base: tyro.conf.Positional[str]
    lora: Path | None = None
    dtype: ExportDtype = "float32"

    def run(self) -> str:
        """Load the concept onto its base and return a table.

        Raises:
            ConceptError: If the concept does not fit, or the LoRA lacks a layer or has others.
        """
        read_file(self.file)
        from loldu.base.parts import load_changed_parts
        from loldu.concept.clients import compare_clients
        from loldu.concept.export import EXPORT_DTYPES, export_lora
        from loldu.concept.format import read_concept
        from loldu.concept.load import load_concept

        base = load_changed_parts(self.base, read_concept(self.file))
        load_concept(base, self.file)
        with TemporaryDirectory() as folder:
            lora = self.lora or Path(folder) / "lora.safetensors"
            if self.lora is None:
                export_lora(base, lora, dtype=EXPORT_DTYPES[self.dtype])
            return report_clients([vars(each) for each in compare_clients(base, lora)])


@dataclass(frozen=True)
class Predict:
    """Read a concept off pictures in a second, without training; the file works as a trained one.

    It is good for things like those that the predictor was trained on. A short training that starts
    there makes it better: `python -m trainer --init_predictor`.

    Attributes:
        predictor: The predictor, a .safetensors file; it is for one base.
        pictures: Pictures of one thing, or folders of them.
        output: The concept file to write.
        class_name: Word for the kind of thing, such as toy, which the file then names.
        token: Word that calls the concept in prompts; by default that of the predictor's training.
        seed: Draw another concept from the predictor's spread; the most likely one without it.
        overwrite: Replace `output` if it exists.
    """

    predictor: tyro.conf.Positional[Path]
    pictures: tyro.conf.Positional[tuple[Path, ...]]
    output: Path
    class_name: str | None = None
    token: str | None = None
    seed: int | None = None
    overwrite: bool = False

    def run(self) -> str:
        """Write the concept file and return how to call the concept.

        Raises:
            ConceptError: If the predictor is unsound, or the file exists.
            LoLDUError: If a picture cannot be read.
        """
        read_file(self.predictor, PREDICTOR)
        from loldu.concept.export import check_file
        from loldu.concept.format import write_concept
        from loldu.pictures.folder import list_images
        from loldu.predict.predictor import read_predictor

        check_file(self.output, self.overwrite)
        found = [list_images(path) if path.is_dir() else [path] for path in self.pictures]
        pictures = [picture for each in found for picture in each]
        how = {"class_name": self.class_name, "token": self.token}
        concept = read_predictor(self.predictor).read(pictures, seed=self.seed, **how)
        write_concept(concept, self.output, overwrite=self.overwrite)
        token = concept.metadata.get("token")
        call = f' "{token}" in a prompt calls it.' if token else ""
        return f"Wrote {self.output}, read off {len(pictures)} pictures.{call}\n"


Command = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Truncate, tyro.conf.subcommand("truncate")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[CompareClients, tyro.conf.subcommand("compare-clients")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 after a mistake, which is one sentence."""

    def write_report() -> None:
        command: Inspect | Verify | Export | Truncate | Merge | CompareClients | Predict = tyro.cli(
            Command,  # pyright: ignore[reportArgumentType]  a union of annotated types is a form
            args=argv,
            prog=program("loldu"),
            description=__doc__,
            use_underscores=True,
        )
        sys.stdout.write(command.run())

    return run_command(write_report, interrupted="Stopped; nothing was written.")


if __name__ == "__main__":
    sys.exit(run())
