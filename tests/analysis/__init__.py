"""Inspection of texts, and steering."""
