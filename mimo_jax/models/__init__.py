"""Mathematics of the models: pure Flax Linen modules, no input/output, no meshes, no configuration parsing."""
