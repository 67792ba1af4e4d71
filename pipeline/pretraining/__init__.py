"""The embedded default's small language model, trained from the demo corpus."""
