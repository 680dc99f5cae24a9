"""Stands in for github.com/google-research/jestimator, of which t5x offers the optimiser Amos under its own name."""
