"""LoLDU: a concept is a diagonal between two fixed factors of the base weight."""

from .config import LoLDUConfig
from .factorization import Factors, ldu, svd
from .model import LoLDUModel, project
from .registration import register

__version__ = "0.1.0"

__all__ = [
    "Factors",
    "LoLDUConfig",
    "LoLDUModel",
    "ldu",
    "project",
    "svd",
]

register()
