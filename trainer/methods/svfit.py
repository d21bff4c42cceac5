"""SVFit: as LoLDU, between fixed singular vectors instead of LDU factors."""

from trainer.methods.loldu import LoLDU


class SVFit(LoLDU):
    """Diagonals between singular vectors, with the singular values as their start."""

    title = "SVFit"
    factorization = "svd"


METHOD = SVFit()
