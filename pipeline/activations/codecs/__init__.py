"""How activations are stored: a codec for each `activations.storage_dtype`."""
