"""SVFit: as LoLDU, between fixed singular vectors instead of LDU factors."""

from dataclasses import replace
from functools import partial

from trainer.methods import loldu

METHOD = replace(loldu.METHOD, title="SVFit", add=partial(loldu.add, factorization="svd"))
