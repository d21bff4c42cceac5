"""Metrics as functions of features, and intervals around their means."""
