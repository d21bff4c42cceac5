"""Measurements beside peers; each writes its result, and what it was measured with, as JSON."""
