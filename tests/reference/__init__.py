"""A second implementation of the published models, in NumPy float64, for comparison only.

Written from the published facts of the models alone: it reads official tensors by their official names and the values
of `config.json`, one sequence at a time, without padding, masks or batches. Nothing of `mimo_jax` is imported here.
"""
