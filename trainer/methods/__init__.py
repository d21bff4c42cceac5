"""The training methods, one file each: what a method trains and the file it saves.

A new method is a file with a `METHOD` (see `method.py`), and its name in `MethodName`.
"""

from typing import Literal

MethodName = Literal["loldu", "svfit", "lora", "dreambooth", "textual_inversion", "peft"]
