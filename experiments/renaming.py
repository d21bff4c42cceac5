"""A concept's pictures with captions that call it by another word."""

import shutil
from pathlib import Path


def copy_renamed(pictures: Path, copy: Path, old: str, new: str) -> None:
    """Copy a folder of pictures and captions, with one word for another in every caption."""
    shutil.copytree(pictures, copy, dirs_exist_ok=True)
    for caption in copy.glob("*.txt"):
        text = caption.read_text(encoding="utf-8").replace(old, new)
        caption.write_text(text, encoding="utf-8")
