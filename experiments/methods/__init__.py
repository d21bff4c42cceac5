"""The ways of training that are compared, each put on a model by its name.

Adapters are PEFT's own, ours among them; what PEFT lacks is a small module of its own here.
"""

from experiments.methods.adapt import METHODS, adapt, check_method
from experiments.methods.count import count_parameters

__all__ = ["METHODS", "adapt", "check_method", "count_parameters"]
