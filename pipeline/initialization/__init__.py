"""Initialisation strategies, one a file."""
