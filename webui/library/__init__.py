"""The library of concepts: files, metadata, export and scoring."""
