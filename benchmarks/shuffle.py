"""How well batches are mixed: pairs of rows from one context, against a uniform shuffle of the same rows.

python -m benchmarks.shuffle        # after `dvc repro`: on the batches that training sees
"""

from __future__ import annotations

import click
import torch

from pipeline.activations.schema import training_rows
from pipeline.opening import open_activations
from pipeline.params.loader import load_params


def same_context_share(context_ids: torch.Tensor, batch_size: int) -> float:
    """Share of the pairs of rows within batches whose rows are of the same context.

    Args:
        context_ids: int64 [n_batches * batch_size], in the order of the batches.
        batch_size: rows of a batch.
    """
    same = 0
    for batch in context_ids.split(batch_size):
        counts = torch.unique(batch, return_counts=True)[1]
        same += int((counts * (counts - 1) // 2).sum())
    n_batches = len(context_ids) // batch_size
    return same / (n_batches * batch_size * (batch_size - 1) / 2)


@click.command()
@click.option("--activations", default="data/activations.json", show_default=True)
@click.option("--params", default="params.yaml", show_default=True)
@click.option("--epochs", default=1, show_default=True)
def main(activations: str, params: str, epochs: int) -> None:
    """Print the share of same-context pairs in the trainer's batches and in uniformly shuffled ones."""
    loaded = load_params(params)
    store = open_activations(activations)
    rows = training_rows(store, loaded.fold.calibration_tokens)
    size = loaded.activations.batch_size
    stream = store.batches(
        size,
        seed=loaded.seed,
        epochs=epochs,
        rows=rows,
        buffer_rows=loaded.activations.buffer_size,
        hook_points=store.hook_points[:1],
    )
    found = torch.cat([torch.as_tensor(batch.context_ids, dtype=torch.int64).clone() for batch in stream])
    ours = same_context_share(found, size)
    shuffled = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(1))]
    uniform = same_context_share(shuffled, size)
    click.echo(f"{len(found):,} rows in batches of {size:,}: share of same-context pairs {ours:.3e}")
    click.echo(f"uniform shuffle of the same rows: {uniform:.3e}; ratio {ours / uniform:.2f}")


if __name__ == "__main__":
    main()
