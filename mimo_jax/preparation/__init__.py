"""Preparation: raw audio and text -> curated records -> codes -> tokenized examples -> packed rows."""
