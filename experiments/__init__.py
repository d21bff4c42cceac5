"""Experiments: one folder each, with what it runs and what it measured."""
