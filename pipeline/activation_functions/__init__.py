"""Activation functions on the gating value, by name."""
