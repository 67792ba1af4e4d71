"""Several processes for one stage, on torch.distributed and its elastic launcher."""
