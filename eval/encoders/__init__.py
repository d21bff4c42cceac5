"""Image and text encoders, and a cache of their features."""
