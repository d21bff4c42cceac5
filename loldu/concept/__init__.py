"""The one-file concept: its format, saving, loading, export and use."""
