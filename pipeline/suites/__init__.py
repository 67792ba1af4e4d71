"""Suites: how much features say about labels, how well a dictionary finds features that are known, and SAEBench's own runs."""
