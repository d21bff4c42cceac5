"""Find out before a training whether the models of its scores are here or can be downloaded."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from loldu.options import options as known_options
from trainer.options.scores import ScoresConfig

_REPOSITORIES = {"open_clip:ViT-B-32-quickgelu/openai": "timm/vit_base_patch32_clip_224.openai"}
"""Where open_clip has its weights from."""
_WAIT_S, _REMEMBERED_S = 2.0, 60.0
_asked: dict[str, tuple[float, bool]] = {}


def lacking(options: Mapping[str, Any], reachable: Callable[[], bool] | None = None) -> list[str]:
    """Return which of CLIP and DINO a scored training cannot have; [] without scores.

    Args:
        options: Options of the trainer, by name.
        reachable: Returns whether the hub answers; by default, it is asked once a minute.
    """
    if not options.get("validation_scores"):
        return []
    known = known_options(ScoresConfig)
    asked = {name: options.get(name) or known[name].default for name in ("clip", "dino")}
    away = [name.upper() for name, model in asked.items() if not _is_here(str(model))]
    return away if away and not (reachable or hub_answers)() else []


def hub_answers() -> bool:
    """Return whether the hub can be reached; no answer within two seconds counts as no."""
    if constants.is_offline_mode():
        return False
    at, answer = _asked.get(constants.ENDPOINT, (-_REMEMBERED_S, False))
    if monotonic() - at < _REMEMBERED_S:
        return answer
    pool = ThreadPoolExecutor(1)  # a name server that does not answer ignores the time limit
    try:
        future = pool.submit(lambda: get_session().head(constants.ENDPOINT, timeout=_WAIT_S))
        answer = future.result(_WAIT_S).status_code < 500
    except Exception:  # every way to have no network
        answer = False
    finally:
        pool.shutdown(wait=False)
    _asked[constants.ENDPOINT] = monotonic(), answer
    return answer


def _is_here(model: str) -> bool:
    """Return whether a model is a local path or in the hub's cache; true where nobody can tell."""
    kind, _, name = model.partition(":")
    if Path(model).exists() or (name and Path(name).exists()):
        return True
    if Path(model).is_absolute() or model.startswith("."):
        return False
    repository = _REPOSITORIES.get(model) or (f"timm/{name}" if kind == "timm" else model)
    if ":" in repository or repository.count("/") != 1:
        return True
    folder = f"models--{repository.replace('/', '--')}"
    return any(Path(constants.HF_HUB_CACHE, folder, "snapshots").glob("*/*"))
