"""The factorizations of a weight, by the name that concept files use."""

from loldu.adapter.factors import Factorization
from loldu.adapter.ldu import COMPLETE, PARTIAL
from loldu.adapter.svd import SVD

FACTORIZATIONS: dict[str, Factorization] = {}


def register_factorization(factorization: Factorization) -> None:
    """Make a factorization an option of LoLDUConfig and a name in concept files.

    Raises:
        ValueError: If its name is taken.
    """
    if factorization.name in FACTORIZATIONS:
        raise ValueError(f"a factorization named '{factorization.name}' is registered already")
    FACTORIZATIONS[factorization.name] = factorization


def methods() -> list[str]:
    """Return the values that `LoLDUConfig.factorization` can have."""
    return [*dict.fromkeys(known.method for known in FACTORIZATIONS.values())]


def select(method: str, pivoting: str) -> str:
    """Return the name of the factorization that two options of LoLDUConfig select.

    Args:
        method: One of `methods`.
        pivoting: Selects among several factorizations of the method.
    """
    names = [known.name for known in FACTORIZATIONS.values() if known.method == method]
    return pivoting if pivoting in names else names[0]


for _factorization in (PARTIAL, COMPLETE, SVD):
    register_factorization(_factorization)
