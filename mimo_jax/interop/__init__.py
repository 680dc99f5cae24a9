"""Weights that travel: the released layout (safetensors, config.json) to our parameter trees and back."""
