"""Norms of activations: measured once for each hook point, then the factor that normalises (SPEC 3).

m_p is the mean over kept tokens of the per-token L2 norm, massive ones left out (pipeline/exclusion.py). The factor of a hook
point multiplies its activations, as input and as label; reconstructions are divided by it:

    token-wise    sqrt(D) / ||x_token||
    batch-wise    sqrt(D) / mean_b ||x_b||
    dataset-wise  sqrt(D) / m_p
    dataset-rms   1 / sqrt(E ||x||^2)
    inference     1
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.errors import DataError, NumericsError, ParamsError, unknown_name
from pipeline.exclusion import MASSIVE_FACTOR, MEDIAN_TOKENS, median_norm
from pipeline.files import read_json, write_json
from pipeline.norms_statistics import QUANTILES, ActivationStatistics, effective_rank

SMALLEST = 1e-12
_NEXT = "run `dvc repro -s -f norm`"


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
        if not (isinstance(number, int | float) and math.isfinite(number) and number > 0):
            raise DataError(f"norms: {name} = {number!r}, wanted a positive finite number")
    if norm.d != d:
        raise DataError(f"norms: measured on activations of width {norm.d}, wanted {d}; {_NEXT}")
    return norm


def scale_factor(
    norm_activation: str, hook_norm: HookNorm | None, x: Tensor | None = None, mask: Tensor | None = None
) -> float | Tensor:
    """The factor that normalises a hook point's activations.

    Args:
        norm_activation: token-wise, batch-wise, dataset-wise, dataset-rms or inference.
        hook_norm: of the hook point; read by the dataset ones only.
        x: [..., D]; read by token-wise and batch-wise only.
        mask: bool [...], the tokens that batch-wise takes the mean over.

    Returns:
        a float, or a float32 tensor that broadcasts over `x`: [..., 1].

    Raises:
        ParamsError: unknown name.
        DataError: what it needs was not given.
    """
    if norm_activation == "inference":
        return 1.0
    if norm_activation in ("dataset-wise", "dataset-rms"):
        if hook_norm is None:
            raise DataError(f"norm_activation {norm_activation} needs the norms of the hook point; {_NEXT}")
        if norm_activation == "dataset-wise":
            return math.sqrt(hook_norm.d) / hook_norm.mean_norm
        if hook_norm.mean_square is None:
            raise DataError(
                f"norm_activation {norm_activation} needs the mean square of the hook point's norms; {_NEXT}, or give it"
            )
        return 1.0 / math.sqrt(hook_norm.mean_square)
    if norm_activation not in ("token-wise", "batch-wise"):
        known = ("token-wise", "batch-wise", "dataset-wise", "dataset-rms", "inference")
        raise ParamsError(unknown_name("norm_activation", norm_activation, known))
    if x is None:
        raise DataError(f"norm_activation {norm_activation} needs the activations")
    with torch.autocast(x.device.type, enabled=False):
        norms = torch.linalg.vector_norm(x if x.dtype == torch.float64 else x.float(), dim=-1, keepdim=True)
        if norm_activation == "batch-wise":
            if mask is None:
                norms = norms.mean()
            else:
                kept = mask.unsqueeze(-1).to(norms.dtype)
                norms = (norms * kept).sum() / kept.sum().clamp(min=1.0)
            norms = norms.reshape((1,) * x.ndim)
        return math.sqrt(x.shape[-1]) / norms.clamp(min=SMALLEST)


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


class Store(Protocol):
    """What is asked of an activation store."""

    path: Path
    n_rows: int
    chunk_rows: int
    target: str
    context_size: int

    @property
    def hook_points(self) -> list[str]: ...
    def width(self, hook_point: str) -> int: ...
    def read(self, hook_point: str, start: int, stop: int) -> Tensor: ...


def first_median(store: Store, hook_point: str) -> float | None:
    """Median norm of the first MEDIAN_TOKENS tokens of a store (kept ones; rows are shuffled); None where it is 0."""
    flat = store.target == "activations-1d"
    stop = min(-(-MEDIAN_TOKENS // (1 if flat else store.context_size)), store.n_rows)
    return median_norm(store.read(hook_point, 0, stop), None if flat else store.read("mask", 0, stop))


def compute_norms(
    store: Store,
    tokens: int | None = None,
    *,
    max_norm_factor: float | None = None,
    hook_points: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    done: Callable[[int], None] = lambda n: None,
    massive: Callable[[str, int, Tensor], None] = lambda hook_point, start, rows: None,
) -> dict[str, ActivationStatistics]:
    """Statistics of the first rows of a store (they are shuffled, so a fair sample).

    Args:
        store: an open activation store.
        tokens: how many tokens to read, rounded up to whole contexts in 2-D; None: all.
        max_norm_factor: activations.max_norm_factor.
        hook_points: which; None: all that are open.
        device: where the sums are computed.
        done: called with every number of tokens read.
        massive: called with a hook point, a row of the store and a bool tensor of its shape [n] or [n, T] for the rows from
            there on: True for a massive token.

    Raises:
        NumericsError: a non-finite activation, with hook point and store row; or no kept token at all.
    """
    flat = store.target == "activations-1d"
    per_row = 1 if flat else store.context_size
    rows = store.n_rows if tokens is None else min(-(-tokens // per_row), store.n_rows)
    found = {}
    for name in hook_points if hook_points is not None else store.hook_points:
        statistics = ActivationStatistics(store.width(name), device, first_median(store, name), max_norm_factor)
        for start in range(0, rows, store.chunk_rows):
            stop = min(start + store.chunk_rows, rows)
            values = store.read(name, start, stop)
            mask = None if flat else store.read("mask", start, stop)
            above = statistics.update(values, mask)
            if above is not None:
                massive(name, start, above)
            if statistics.nonfinite:
                bad = ~torch.isfinite(values).all(dim=-1) & (mask if mask is not None else torch.tensor(True))
                index = tuple(int(i) for i in bad.nonzero()[0])
                where = f"row {start + index[0]}" + ("" if flat else f", position {index[1]}")
                raise NumericsError(
                    f"{store.path}: hook point {name}: {statistics.nonfinite} of {stop:,} rows hold non-finite "
                    f"activations, the first at {where}; generate with another model.dtype or storage_dtype"
                )
            done((stop - start) * per_row)
        if statistics.n == 0 or statistics.sum_norm == 0.0:
            what = "no token is kept by the mask" if statistics.n == 0 else "every activation is zero"
            raise NumericsError(f"{store.path}: hook point {name}: {what}; there is no norm to normalise by")
        found[name] = statistics
    return found


def write_norms(statistics: Mapping[str, ActivationStatistics], path: str | Path, arrays_path: str | Path) -> None:
    """Write norms.json ({hook point: the fields of HookNorm}) and the arrays beside it.

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
    write_bytes(arrays_path, save(arrays))
    write_json(path, norms)


def load_norms(path: str | Path) -> dict[str, HookNorm]:
    """Read norms.json.

    Raises:
        DataError: missing, damaged, or a value that cannot be a norm.
    """
    found = read_json(path, "the file of activation norms", _NEXT)
    try:
        return {str(name): as_hook_norm(value, value["d"]) for name, value in found.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: the file of activation norms is damaged ({error!r}); {_NEXT}") from None


def load_norm_arrays(path: str | Path) -> dict[str, Tensor]:
    """Read the arrays that :func:`write_norms` wrote.

    Raises:
        DataError: missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: the statistics of the activations are missing; {_NEXT}") from None
    except SafetensorError as error:
        raise DataError(f"{path}: the statistics of the activations are damaged ({error}); {_NEXT}") from None
