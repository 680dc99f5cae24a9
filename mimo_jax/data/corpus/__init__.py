"""The built-in speech corpus: synthesised locally, so that text, voice, rate, pitch, style and noise are all known."""
