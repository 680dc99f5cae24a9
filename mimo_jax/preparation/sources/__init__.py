"""Where recordings and texts come from."""
