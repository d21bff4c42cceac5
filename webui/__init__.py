"""A page to draw with concepts: the base and the concept side by side, from the same seeds."""
