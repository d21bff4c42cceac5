"""How a server draws, for all of its processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loldu.base.config import BaseModelConfig
from webui.serving.keys import Key


@dataclass(frozen=True)
class Plan:
    """The base, the concepts and the limits of a server.

    Attributes:
        base: The base.
        concepts: Folder of the concepts.
        batch_size: Most pictures of a pass.
        batch_wait_s: Longest wait for a full batch.
        resident: Concepts that stay loaded in each replica.
        max_queue: Most pictures that wait for a replica.
        replicas: Fewest and most replicas.
        gpus: GPUs of a replica; by default one if the cluster has any.
        most_px: Largest side of a picture.
        defaults: Values of keys that a request leaves out.
        keys: Keys and limits by user; empty if everybody may ask.
    """

    base: BaseModelConfig
    concepts: str
    batch_size: int = 8
    batch_wait_s: float = 0.05
    resident: int = 256
    max_queue: int = 256
    replicas: tuple[int, int] = (1, 1)
    gpus: float | None = None
    most_px: int = 1024
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)
