"""The stages that a recording or a text passes through; each a small class that gin binds and a user can replace."""
