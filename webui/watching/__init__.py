"""Content of the Progress tab."""
