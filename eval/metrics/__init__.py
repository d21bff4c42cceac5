"""Metrics: a registry of them, functions of features, and intervals around their means."""

from eval.metrics import standard as standard  # registers the metrics that are shipped
from eval.metrics.metric import METRICS, Metric, Sample, headline_metrics, register

__all__ = ["METRICS", "Metric", "Sample", "headline_metrics", "register"]
