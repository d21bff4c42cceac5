"""Evaluation results as JSON, tables, pictures and pages."""
