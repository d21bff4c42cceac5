"""LoLDU: a concept is a diagonal between two fixed factors of the base weight."""

from loldu.adapter.config import LoLDUConfig
from loldu.adapter.factorization import Factors, ldu, svd
from loldu.adapter.model import LoLDUModel, project
from loldu.adapter.registration import register
from loldu.concept.export import export_lora
from loldu.concept.format import Concept, ConceptLayer, read_concept
from loldu.concept.hotswap import hotswap_concept
from loldu.concept.in_use import mix, set_concepts, set_strength, unload_concept
from loldu.concept.load import load_concept, save_concept, verify_concept
from loldu.concept.merge import save_merged
from loldu.concept.truncate import LayerCut, Truncation, truncate
from loldu.errors import ConceptError

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
