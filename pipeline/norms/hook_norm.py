"""The norm of a hook point: what was measured once, what goes with the weights, and data/norms.json.

m_p is the mean over kept tokens of the per-token L2 norm, massive ones left out (exclusion.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipeline.contracts.sealing import Origin, sealed, unsealed
from pipeline.errors import DataError, unknown_name
from pipeline.files import is_number, read_bytes, read_json, write_json
from pipeline.foreign import reading
from pipeline.norms.exclusion import MASSIVE_FACTOR
from pipeline.norms.statistics import QUANTILES, effective_rank

if TYPE_CHECKING:
    from pipeline.norms.statistics import ActivationStatistics

STAGE = "norm"
NEXT = "run `dvc repro -s -f norm`"


@dataclass(frozen=True)
class HookNorm:
    """What data/norms.json says of one hook point.

    Attributes:
        mean_norm: m_p, in the model's units.
        mean_square: E||x||^2; None where only a mean norm was given, which dataset-rms does not do with.
        d: width.
        median_norm: median norm of the first tokens, of which massive ones are told by; None: not measured.
        max_norm_factor: activations.max_norm_factor, the rule by which tokens are excluded; None: none are.
        n_tokens: tokens in the means, the mean square and the covariance: kept ones that are not massive.
        n_massive: kept tokens longer than `massive_norm`.
        n_excluded: kept tokens longer than `max_norm`, which the rule leaves out of everything: n_massive, or 0.
        largest_norm: of a kept token.
        norm_quantiles: {"0.01": ..., "0.5": ..., "0.99": ..., "0.999": ...} of the norms of all kept tokens.
        effective_rank: exp of the entropy of the covariance's normalised eigenvalues, rounded up.
        nonfinite: rows with a non-finite value (0: otherwise nothing is written).
    """

    mean_norm: float
    mean_square: float | None
    d: int
    median_norm: float | None = None
    max_norm_factor: float | None = None
    n_tokens: int = 0
    n_massive: int = 0
    n_excluded: int = 0
    largest_norm: float | None = None
    norm_quantiles: Mapping[str, float] = dataclasses.field(default_factory=dict)
    effective_rank: int | None = None
    nonfinite: int = 0

    @property
    def max_norm(self) -> float | None:
        """Norm above which a token is excluded; None: none is."""
        return None if self.median_norm is None or self.max_norm_factor is None else self.max_norm_factor * self.median_norm

    @property
    def massive_norm(self) -> float | None:
        """Norm above which a token is massive: `max_norm`, without a rule MASSIVE_FACTOR medians; None: not measured."""
        return None if self.median_norm is None else (self.max_norm_factor or MASSIVE_FACTOR) * self.median_norm

    def to_dict(self) -> dict[str, Any]:
        """What goes with weights: the factor, and, where that was measured, which tokens were left out; as plain values."""
        factor, measured = ("mean_norm", "mean_square", "d"), ("median_norm", "max_norm_factor", "n_tokens", "n_excluded")
        names = factor if self.median_norm is None else (*factor, *measured)
        return {name: getattr(self, name) for name in names}


def as_hook_norm(value: float | Mapping[str, Any] | HookNorm, d: int) -> HookNorm:
    """A hook point's norm from a mean norm, from {mean_norm, mean_square, d, ...} or from a :class:`HookNorm`.

    Args:
        value: a bare number is the mean norm.
        d: width of the hook point; a stated one must equal it.

    Raises:
        DataError: not a positive finite number, a missing or unknown key, or another width.
    """
    if isinstance(value, HookNorm):
        norm = value
    elif isinstance(value, Mapping):
        known = [field.name for field in dataclasses.fields(HookNorm)]
        for key in value:
            if key not in known:
                raise DataError(f"norms: {unknown_name('key', str(key), known)}")
        if "mean_norm" not in value:
            raise DataError("norms: 'mean_norm' is missing")
        norm = HookNorm(**{"mean_square": None, "d": d, **value})
    else:
        norm = HookNorm(float(value), None, d)
    optional = {name: getattr(norm, name) for name in ("mean_square", "median_norm", "max_norm_factor")}
    stated = {"mean_norm": norm.mean_norm} | {name: number for name, number in optional.items() if number is not None}
    for name, number in stated.items():
        if not (is_number(number) and number > 0):
            raise DataError(f"norms: {name} = {number!r}, wanted a positive finite number")
    counts = {name: getattr(norm, name) for name in ("d", "n_tokens", "n_massive", "n_excluded", "nonfinite")}
    for name, count in counts.items():
        if type(count) is not int or not (is_number(count) and count >= 0):
            raise DataError(f"norms: {name} should be a count, got {count!r}")
    quantiles = norm.norm_quantiles
    if not (isinstance(quantiles, Mapping) and all(is_number(value) for value in quantiles.values())):
        raise DataError(f"norms: norm_quantiles should be numbers by name, got {quantiles!r}")
    if norm.d != d:
        raise DataError(f"norms: measured on activations of width {norm.d}, wanted {d}; {NEXT}")
    return norm


def hook_norms(norms: Any, widths: Mapping[str, int]) -> dict[str, HookNorm]:
    """The norms of some hook points, from whatever form they have.

    Args:
        norms: {hook point: as for :func:`as_hook_norm`}, or one such value for every hook point.
        widths: {hook point: width} of those that are wanted.

    Raises:
        DataError: a hook point has no norm, or one that cannot be.
    """
    if not isinstance(norms, Mapping):
        norms = dict.fromkeys(widths, norms)
    missing = [hook for hook in widths if hook not in norms]
    if missing:
        raise DataError(f"norms: {unknown_name('hook point', missing[0], norms)}; {NEXT}")
    found = {}
    for hook, width in widths.items():
        try:
            found[hook] = as_hook_norm(norms[hook], width)
        except DataError as error:
            raise DataError(f"hook point '{hook}': {error}") from None
    return found


def hook_norm(found: ActivationStatistics, rank: int | None = None) -> HookNorm:
    """The norm that statistics give; `rank` is the effective rank, which takes an eigendecomposition."""
    return HookNorm(
        mean_norm=found.mean_norm,
        mean_square=found.mean_square,
        d=found.width,
        median_norm=found.median_norm,
        max_norm_factor=found.max_norm_factor,
        n_tokens=found.n,
        n_massive=found.n_massive,
        n_excluded=found.n_excluded,
        largest_norm=found.largest_norm,
        norm_quantiles={str(q): found.quantile(q) for q in QUANTILES},
        effective_rank=rank,
        nonfinite=found.nonfinite,
    )


def write_norms(
    statistics: Mapping[str, ActivationStatistics],
    path: str | Path,
    arrays_path: str | Path,
    made_from: Mapping[str, str] | None = None,
) -> None:
    """Write norms.json ("hook_points": {hook point: the fields of HookNorm}) and the arrays beside it, sealed together.

    `made_from`: {input: its digest}.

    The arrays (safetensors): "{hook}/mean" [d], "{hook}/eigenvalues" [d] descending, "{hook}/eigenvectors" [r, d] rows,
    r = min(d, 1024), "{hook}/norm_histogram_edges" [m + 1], "{hook}/norm_histogram_counts" [m].
    """
    from safetensors.torch import save

    from pipeline.files import write_bytes

    norms, arrays = {}, {}
    for name, found in statistics.items():
        values, vectors = found.spectrum()
        edges, counts = found.histogram()
        norms[name] = dataclasses.asdict(hook_norm(found, effective_rank(values)))
        arrays[f"{name}/mean"] = found.mean().cpu()
        arrays[f"{name}/eigenvalues"] = values
        arrays[f"{name}/eigenvectors"] = vectors
        arrays[f"{name}/norm_histogram_edges"] = edges
        arrays[f"{name}/norm_histogram_counts"] = counts
    content = save(arrays)
    write_bytes(arrays_path, content)
    write_json(path, sealed_norms(norms, hashlib.sha256(content).hexdigest(), made_from or {}))


def sealed_norms(norms: Mapping[str, Any], statistics: str, made_from: Mapping[str, str]) -> dict[str, Any]:
    """What norms.json holds: {hook point: the fields of HookNorm}, and the sha256 of the file of arrays."""
    return sealed({"hook_points": dict(norms), "statistics": statistics}, Origin(STAGE, made_from))


def load_norms(path: str | Path) -> dict[str, HookNorm]:
    """The norms of :func:`read_norms`."""
    return read_norms(path)[0]


def read_norms(path: str | Path, arrays_path: str | Path | None = None) -> tuple[dict[str, HookNorm], Origin]:
    """Read norms.json.

    Args:
        path: the file.
        arrays_path: of the arrays, which are checked to be those that were written with it; None: they are not looked at.

    Returns: {hook point: norm}, and where the file comes from.

    Raises:
        DataError: missing, altered, or a value that cannot be a norm; the arrays are missing or those of other norms.
    """
    what = "the file of activation norms"
    found, origin = _unsealed(read_json(path, what, NEXT), Path(path), what)
    try:
        norms = {str(name): as_hook_norm(value, value["d"]) for name, value in found["hook_points"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: the file of activation norms is damaged ({error!r}); {NEXT}") from None
    if (
        arrays_path is not None
        and "statistics" in found
        and hashlib.sha256(_read_arrays(arrays_path)).hexdigest() != found["statistics"]
    ):
        raise DataError(f"{arrays_path}: altered, or not written with {path} (its sha256 is not the one there); {NEXT}")
    return norms, origin


def _unsealed(found: Any, path: Path, what: str) -> tuple[dict[str, Any], Origin]:
    if isinstance(found, dict) and found and "hook_points" not in found:  # of an earlier version, {hook point: its norm}
        return {"hook_points": found}, Origin(STAGE)
    return unsealed(found, path, what, next_action=NEXT)


def _read_arrays(path: str | Path) -> bytes:
    return read_bytes(path, "the file of activation statistics", NEXT)


def load_norm_arrays(path: str | Path) -> dict[str, Tensor]:
    """Read the arrays that :func:`write_norms` wrote.

    Raises:
        DataError: missing or damaged.
    """
    from safetensors.torch import load

    content = _read_arrays(path)
    with reading(f"{path}: the statistics of the activations are damaged", NEXT):
        return load(content)
