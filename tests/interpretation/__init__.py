"""Automatic interpretation of features."""
