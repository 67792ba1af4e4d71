"""Plots that open offline: the same charts as PNG files and as one HTML page."""
