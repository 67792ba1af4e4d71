"""Experiments in a notebook: a language model run with dictionaries in it, edits of features, attribution."""
