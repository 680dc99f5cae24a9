"""Losses of every training stage as pure functions of (parameters, mutable state, batch)."""
