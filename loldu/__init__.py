"""LoLDU: a concept is a diagonal between two fixed factors of the base weight."""

from .concept import load_concept, save_concept, verify_concept
from .concept_file import Concept, ConceptError, ConceptLayer, read_concept
from .config import LoLDUConfig
from .export import export_lora
from .factorization import Factors, ldu, svd
from .hotswap import hotswap_concept
from .merged import save_merged
from .model import LoLDUModel, project
from .pipeline import mix, set_concepts, set_strength, unload_concept
from .registration import register
from .truncation import LayerCut, Truncation, truncate

__version__ = "0.1.0"

__all__ = [
    "Concept",
    "ConceptError",
    "ConceptLayer",
    "Factors",
    "LayerCut",
    "LoLDUConfig",
    "LoLDUModel",
    "Truncation",
    "export_lora",
    "hotswap_concept",
    "ldu",
    "load_concept",
    "mix",
    "project",
    "read_concept",
    "save_concept",
    "save_merged",
    "set_concepts",
    "set_strength",
    "svd",
    "truncate",
    "unload_concept",
    "verify_concept",
]

register()
