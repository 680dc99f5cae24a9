"""From recordings and texts to the batch of a training step."""
