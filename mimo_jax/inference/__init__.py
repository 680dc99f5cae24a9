"""Use of trained models: sampling, generation, tasks, the audio codec."""
