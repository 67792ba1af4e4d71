"""Norms of activations: how long they are, which are massive, and the factor that normalises a hook point."""
