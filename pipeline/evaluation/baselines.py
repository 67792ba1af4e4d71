"""What a dense reconstruction with as many numbers per token would do: PCA of rank = rounded mean L0, massive tokens left out
(at most as many directions as the norm pass keeps; `pca_rank` says how many).

    x_hat = mu + V V^T (x - mu)

with mu the mean activation of the norm pass and V the leading eigenvectors of its covariance (data/norm_statistics).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import DataError, NumericsError
from pipeline.evaluation.language_model import Replacement, keep_masked
from pipeline.evaluation.reconstruction import kept_of, kept_rows
from pipeline.norms.hook_norm import load_norm_arrays


@dataclass(frozen=True)
class PrincipalDirections:
    """Mean [D] and orthonormal leading directions [R, D], both float64, of one hook point's activations."""

    mean: Tensor
    directions: Tensor


def load_principal_directions(path: str | Path, hooks: tuple[str, ...]) -> dict[str, PrincipalDirections]:
    """Read `{hook}/mean` and `{hook}/eigenvectors` of the norm stage's statistics.

    Raises:
        DataError: the file is missing or damaged, or has no statistics of a hook point.
    """
    arrays = load_norm_arrays(path)
    known = sorted(name.removesuffix("/mean") for name in arrays if name.endswith("/mean"))
    missing = [hook for hook in hooks if not {f"{hook}/mean", f"{hook}/eigenvectors"} <= arrays.keys()]
    if missing:
        raise DataError(
            f"{path}: no statistics of {', '.join(missing)} (known: {', '.join(known) or 'none'}); run `dvc repro -s -f norm`"
        )
    return {
        hook: PrincipalDirections(arrays[f"{hook}/mean"].double(), arrays[f"{hook}/eigenvectors"].double()) for hook in hooks
    }


class _Energies:
    """Sums over tokens of squared projections and of squared distances from the mean."""

    def __init__(self, n_directions: int) -> None:
        self.total = 0.0
        self.projected = torch.zeros(n_directions, dtype=torch.float64)

    def add(self, centred_ND: Tensor, directions_RD: Tensor) -> None:
        self.total += float(centred_ND.square().sum())
        self.projected += (centred_ND @ directions_RD.T).square().sum(0)

    def add_all(self, other: _Energies) -> None:
        self.total += other.total
        self.projected += other.projected

    def error(self, rank: int) -> float:
        """Squared error of the reconstruction by the first `rank` directions."""
        return max(0.0, self.total - float(self.projected[:rank].sum()))


class Energies:
    """Those of one hook point: of massive tokens, and of all others."""

    def __init__(self, n_directions: int) -> None:
        self.ordinary, self.massive = _Energies(n_directions), _Energies(n_directions)


class PcaMetrics:
    """FVU of PCA at every rank at once.

    Keeps, for each direction, the sum over kept tokens of the squared projection of x - mu, and the sum of
    ||x - mu||^2; since the directions are orthonormal, the squared error at rank r is the latter less the first r of the
    former. Massive tokens have sums of their own.
    """

    def __init__(self, principal: Mapping[str, PrincipalDirections]) -> None:
        self.principal = dict(principal)
        self.energies = {hook: Energies(len(p.directions)) for hook, p in self.principal.items()}

    @classmethod
    def joined(cls, parts: Iterable[PcaMetrics]) -> PcaMetrics:
        """That of several hook points, each of which has been counted by itself."""
        joined = cls({})
        for part in parts:
            joined.principal |= part.principal
            joined.energies |= part.energies
        return joined

    def of(
        self, labels: Mapping[str, Tensor], mask: Tensor | None = None, massive: Tensor | None = None
    ) -> dict[str, Energies]:
        """What :meth:`add` takes, of the kept tokens of the labels {hook: [..., D]}; `massive` [...] is True for a massive one,
        None: none is."""
        found = {}
        for hook, principal in self.principal.items():
            energies = found[hook] = Energies(len(principal.directions))
            centred_ND = kept_rows(labels[hook], mask).cpu() - principal.mean
            if massive is not None:
                massive_N = kept_of(massive, mask).cpu()
                energies.massive.add(centred_ND[massive_N], principal.directions)
                centred_ND = centred_ND[~massive_N]
            energies.ordinary.add(centred_ND, principal.directions)
        return found

    def add(self, energies: Mapping[str, Energies]) -> None:
        """Add what :meth:`of` has found."""
        for hook, found in energies.items():
            self.energies[hook].ordinary.add_all(found.ordinary)
            self.energies[hook].massive.add_all(found.massive)

    def fvu(
        self, rank: int, variances: Mapping[str, float], ordinary_variances: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """`pca_fvu` at `rank`, overall (summed numerators over summed denominators) and, with several hook points, each.

        Args:
            rank: number of directions.
            variances: {hook: sum ||x - mean||^2} over the same tokens, relative to their own mean; where it is 0, a hook point
                has no FVU.
            ordinary_variances: the same over the tokens that are not massive, for `pca_fvu_ordinary`; None: without that.
        """
        errors = {hook: self.energies[hook].ordinary.error(rank) for hook in self.principal}
        every = {hook: error + self.energies[hook].massive.error(rank) for hook, error in errors.items()}
        results = _quotients("pca_fvu", every, variances)
        return results if ordinary_variances is None else results | _quotients("pca_fvu_ordinary", errors, ordinary_variances)


def _quotients(name: str, errors: Mapping[str, float], variances: Mapping[str, float]) -> dict[str, float]:
    """Errors over variances, of all hook points together and of each of several; nothing where it is undefined."""
    variance = sum(variances[hook] for hook in errors)
    results = {name: sum(errors.values()) / variance} if variance else {}
    if len(errors) > 1:
        results.update({f"{name}.{hook}": error / variances[hook] for hook, error in errors.items() if variances[hook]})
    return results


def checked_rank(asked: int | None, principal: Mapping[str, PrincipalDirections]) -> None:
    """Refuse a rank that is stated and that the statistics hold too few directions for; call it before the passes.

    Raises:
        NumericsError: with both numbers.
    """
    for hook, p in principal.items():
        check_rank(asked, hook, p.directions.shape[1], len(p.directions))


def check_rank(asked: int | None, hook: str, width: int, n_directions: int) -> None:
    """Refuse a rank that is stated and above the directions that are kept of a hook point of this width.

    Raises:
        NumericsError: with both numbers.
    """
    if asked is not None and min(asked, width) > n_directions:
        raise NumericsError(
            f"evaluation.pca_rank: {asked:,}, but the norm pass keeps the {n_directions:,} leading directions of {hook}; "
            f"state at most {n_directions:,}, or null"
        )


def used_rank(asked: int | None, l0_mean: float, principal: Mapping[str, PrincipalDirections]) -> int:
    """The rank to use: the one asked for, else the rounded mean L0, at least 1; at most as many directions as there are."""
    rank = asked if asked is not None else max(1, round(l0_mean))
    return min(rank, *(len(p.directions) for p in principal.values()))


def pca_replacements(principal: Mapping[str, PrincipalDirections], rank: int, mask_BT: Tensor) -> dict[str, Replacement]:
    """Splice the PCA reconstruction of rank `rank` in at every hook point, where `mask` [b, T] is True."""

    def replacement(p: PrincipalDirections) -> Replacement:
        def replace(captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
            dtype = original.dtype if original.dtype == torch.float64 else torch.float32
            mean = p.mean.to(original.device, dtype)
            directions = p.directions[:rank].to(original.device, dtype)
            x = original.to(dtype) - mean
            return keep_masked(mask_BT, (x @ directions.T) @ directions + mean, original)

        return replace

    return {hook: replacement(p) for hook, p in principal.items()}
