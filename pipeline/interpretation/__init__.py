"""Automatic interpretation: a language model explains features, and is scored on how well its explanations predict them."""
