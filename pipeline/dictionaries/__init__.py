"""Sparse dictionaries behind one interface."""
