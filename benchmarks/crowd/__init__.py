"""Requests of all kinds at once, good and bad, to a served tiny model: `benchmarks/serving.py` and tests send them."""
