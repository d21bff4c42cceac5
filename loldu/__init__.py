"""LoLDU: a concept is a diagonal between two fixed factors of the base weight.

The names below are imported when they are first used: `import loldu` alone imports neither torch
nor PEFT, so that a command's --help is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loldu.errors import ConceptError
from loldu.peft_hook import register_with_peft

if TYPE_CHECKING:
    from loldu.adapter.base_check import any_base
    from loldu.adapter.config import LoLDUConfig
    from loldu.adapter.factors import Factors
    from loldu.adapter.ldu import ldu
    from loldu.adapter.model import LoLDUModel, project
    from loldu.adapter.svd import svd
    from loldu.concept.export import export_lora
    from loldu.concept.format import Concept, ConceptLayer, read_concept
    from loldu.concept.hotswap import hotswap_concept
    from loldu.concept.load import load_concept
    from loldu.concept.merge import save_merged
    from loldu.concept.route import route_concepts
    from loldu.concept.save import save_concept
    from loldu.concept.switch import mix, set_concepts, set_strength, unload_concept
    from loldu.concept.truncate import LayerCut, Truncation, truncate
    from loldu.concept.verify import verify_concept
    from loldu.predict.predictor import predict_concept

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
    "any_base",
    "export_lora",
    "hotswap_concept",
    "ldu",
    "load_concept",
    "mix",
    "predict_concept",
    "project",
    "read_concept",
    "route_concepts",
    "save_concept",
    "save_merged",
    "set_concepts",
    "set_strength",
    "svd",
    "truncate",
    "unload_concept",
    "verify_concept",
]

_NAMES = {
    "adapter.base_check": ("any_base",),
    "adapter.config": ("LoLDUConfig",),
    "adapter.factors": ("Factors",),
    "adapter.ldu": ("ldu",),
    "adapter.model": ("LoLDUModel", "project"),
    "adapter.svd": ("svd",),
    "concept.export": ("export_lora",),
    "concept.format": ("Concept", "ConceptLayer", "read_concept"),
    "concept.hotswap": ("hotswap_concept",),
    "concept.load": ("load_concept",),
    "concept.merge": ("save_merged",),
    "concept.route": ("route_concepts",),
    "concept.save": ("save_concept",),
    "concept.switch": ("mix", "set_concepts", "set_strength", "unload_concept"),
    "concept.truncate": ("LayerCut", "Truncation", "truncate"),
    "concept.verify": ("verify_concept",),
    "predict.predictor": ("predict_concept",),
}
"""The public names of each module."""


def __getattr__(name: str) -> Any:  # noqa: ANN401
    for module, names in _NAMES.items():
        if name in names:
            globals()[name] = getattr(import_module(f"loldu.{module}"), name)
            return globals()[name]
    raise AttributeError(f"module 'loldu' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_peft()
