"""The one-file concept: its format, saving, loading, export and use."""

from typing import Literal

Layout = Literal["diffusers", "peft", "kohya"]
"""Layouts of keys of an exported LoRA."""

ExportDtype = Literal["float32", "float16", "bfloat16"]
"""Names of the dtypes of an exported LoRA or a merged pipeline."""
