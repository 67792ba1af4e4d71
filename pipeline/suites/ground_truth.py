"""What `stages.ground_truth` does: train a dictionary with a run's parameters on known features, and see which it finds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ParamsError
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.files import write_json
from pipeline.seeding import generator
from pipeline.suites.recovery import DetectionCounts, best_direction, matching, recovery, uniqueness
from pipeline.suites.synthetic import Synthetic, SyntheticSet
from pipeline.tracking.opening import open_tracker
from pipeline.training.on_batches import train_on_batches
from pipeline.training.recipe import CALIBRATION_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.dictionaries.base import Dictionary
    from pipeline.params.schema import Params

STAGE = "ground_truth"
RECOVERED = 0.9  # cosine from which a direction counts as found
EVALUATED = 50_000
# Of the dictionary's section: names, places and widths of the run's own activations.
_OF_THE_RUN = ("name", "hook_point_in", "hook_point_out", "d_model", "sae_name", "sae_series")
# Of the others: what needs the run's own language model or dictionary, and is refused where it is asked for.
_NEEDS_THE_RUN = {
    "initializer": ("from_dictionary", "initialize_tc_with_mlp", "initialize_lorsa_with_mhsa"),
    "trainer": ("model_loss",),
}


def trained(params: Params, known: Synthetic, tokens: int, progress: bool = True) -> Dictionary:
    """A dictionary that was trained on known features, with the sections dictionary, initializer and trainer of a run.

    Args:
        params: of a run whose dictionary reads and writes one hook point.
        known: what activations are made of.
        tokens: rows to train on; each is new.
        progress: show a line on standard error.

    Returns: the inference form.

    Raises:
        ParamsError: the parameters ask for something that these activations do not have.
    """
    _check(params)
    dictionary = {key: value for key, value in params.dictionary.to_dict().items() if key not in _OF_THE_RUN}
    trainer = {**params.trainer.to_dict(), "total_training_tokens": tokens, "n_checkpoints": 0}
    batch_size = params.activations.batch_size
    spare = params.initializer.tokens + 2 * (batch_size + CALIBRATION_TOKENS)  # of massive rows, and thresholds; if needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of fields without effect, which the run's own stages have told
        made = train_on_batches(
            (rows.x for rows in known.blocks(tokens + spare, "train")),
            dictionary=dictionary,
            trainer=trainer,
            initializer=params.initializer.to_dict(),
            batch_size=batch_size,
            max_norm_factor=params.activations.max_norm_factor,
            seed=params.seed,
            progress=progress,
        )
    return made.inference.cpu()


@torch.no_grad()
def figures(dictionary: Dictionary, known: Synthetic, rows: int = EVALUATED) -> dict[str, float]:
    """What of the known features a dictionary has found, on rows that it has not seen.

    Args:
        dictionary: an autoencoder on raw activations.
        known: what activations are made of.
        rows: to evaluate on.
    """
    decoder = dictionary.state_dict()["W_D"].float()
    directions = known.directions
    matched, best = matching(directions, decoder), best_direction(directions, decoder)
    chance = torch.randn(decoder.shape, generator=generator(known.about.seed, "ground truth", "chance"))
    largest, detection = recovery(directions, decoder), DetectionCounts(best)
    parts, true_l0 = [], 0
    for block in known.blocks(rows, "held out"):
        detection.update(dictionary.encode(block.x), block.a)
        true_l0 += int((block.a > 0).sum())
        parts.append(block.x)
    x = torch.cat(parts)
    measured = evaluate_reconstruction(dictionary, x)
    rank = min(max(1, round(measured["l0_mean"])), known.about.width)
    return {
        "mcc": matched.mean,
        "mcc_chance": matching(directions, chance).mean,
        "recovery": float(largest.mean()),
        "recovered_fraction": float((largest > RECOVERED).double().mean()),
        "uniqueness": uniqueness(directions, decoder),
        **detection.results(),
        "true_l0": true_l0 / len(x),
        **{name: measured[name] for name in ("l0_mean", "fvu", "explained_variance", "l2_ratio", "dead_fraction")},
        "pca_fvu": _pca_fvu(known, x, rank),
        "noise_fvu": known.about.noise_norm**2 / float((x - x.mean(0)).double().square().sum(1).mean()),
    }


def _pca_fvu(known: Synthetic, x: Tensor, rank: int) -> float:
    """FVU on x of so many principal directions of training rows."""
    train = torch.cat([rows.x for rows in known.blocks(len(x), "train")]).double()
    mean = train.mean(0)
    directions = torch.linalg.eigh((train - mean).T @ (train - mean))[1][:, -rank:]
    centred = x.double() - mean
    error = centred - centred @ directions @ directions.T
    return float(error.square().sum() / (x.double() - x.double().mean(0)).square().sum())


def _check(params: Params) -> None:
    faults = []
    if params.dictionary.kind != "sae" or params.dictionary.hooks_in != params.dictionary.hooks_out:
        faults.append(
            f"ground truth: dictionary.kind {params.dictionary.kind}: the known activations are those of one hook point, which "
            "an autoencoder (sae) reads and writes; others have no ground truth here"
        )
    for section, keys in _NEEDS_THE_RUN.items():
        faults += [
            f"ground truth: {section}.{key} needs the run's own language model or dictionary; set it to null or false"
            for key in keys
            if getattr(getattr(params, section), key)
        ]
    if faults:
        raise ParamsError(faults)


def run(params: Params, about: SyntheticSet, member: str, tokens: int, out: str | Path, run_file: str | Path) -> list[str]:
    """Train, measure, write the figures and log them; lines for a terminal."""
    known = about.draw()
    dictionary = trained(params, known, tokens)
    found = {**figures(dictionary, known), "tokens": float(tokens)}
    described = known.to_dict()
    write_json(out, {**found, "set": described})
    with open_tracker(params.tracking, stage=STAGE, run_file=run_file, member=member) as tracker:
        tracker.log_metrics(found)
        tracker.set_tags({f"{STAGE}.{name}": value for name, value in described.items()})
        tracker.log_artifact(out, "metrics")
    return table(dictionary, found, described)


def table(dictionary: Dictionary, found: dict[str, float], described: dict[str, Any]) -> list[str]:
    """The figures, in lines."""
    config, about = dictionary.config, described
    return [
        f"{about['features']:,.0f} known features in {about['width']:.0f} dimensions (largest cosine of one with another "
        f"{about['largest_overlap']:.2f} in the mean), {found['true_l0']:.1f} active; {about['roots']:,.0f} roots with "
        f"{about['children']:.0f} children each, correlation {about['correlation']:g}",
        f"dictionary: {config.d_sae:,} features, {config.act_fn}, L0 {found['l0_mean']:.1f}, {found['tokens']:,.0f} rows",
        f"directions: MCC {found['mcc']:.3f} (drawn rows {found['mcc_chance']:.3f}), mean largest cosine "
        f"{found['recovery']:.3f}, found (> {RECOVERED}) {found['recovered_fraction']:.1%}, "
        f"uniqueness {found['uniqueness']:.3f}",
        f"detection: precision {found['precision']:.3f}, recall {found['recall']:.3f}, F1 {found['f1']:.3f}",
        f"FVU {found['fvu']:.4f} (PCA of rank L0 {found['pca_fvu']:.4f}, noise alone {found['noise_fvu']:.4f}), "
        f"dead {found['dead_fraction']:.2%}",
    ]
