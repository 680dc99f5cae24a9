"""Recipes: post-training conversations written from recordings, what is known about them, and a text LLM."""
