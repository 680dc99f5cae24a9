"""Metrics, the evaluation suite and the report."""
