"""The compared training methods, applied to a model by name.

Adapters are those of PEFT, including LoLDU; each method that PEFT lacks has a small module here.
"""

from experiments.methods.adapt import METHODS, adapt, check_method
from experiments.methods.count import count_parameters

__all__ = ["METHODS", "adapt", "check_method", "count_parameters"]
