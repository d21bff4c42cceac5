"""Register LoLDU with PEFT as soon as both are imported, without importing PEFT for it."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_peft() -> None:
    """Register LoLDU with PEFT now, or else at the end of the first `import peft`."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


def _register() -> None:
    from loldu.adapter.registration import register

    register()


class _PeftFinder(MetaPathFinder):
    """Finds `peft` by the other finders, and adds a step to its loading.

    Libraries also look PEFT up without importing it, so the finder stays in place.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _register_after_loading(spec.loader)
                return spec
        return None


def _register_after_loading(loader: Loader) -> None:
    # The loader keeps its class, on which importlib.resources and inspect rely.
    load = loader.exec_module

    def load_and_register(module: ModuleType) -> None:
        load(module)
        if module.__name__ == "peft":
            _register()

    loader.exec_module = load_and_register
