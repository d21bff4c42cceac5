"""The tables and figures of the paper: their settings, code and results."""
