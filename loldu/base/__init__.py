"""The frozen base model: open it, encode with it, draw with it."""
