"""One file for each section of params.yaml: its fields, their ranges, and the checks between them."""
