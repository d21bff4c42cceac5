"""The adapter: a diagonal between two fixed factors of a layer's weight."""
