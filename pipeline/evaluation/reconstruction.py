"""How well a reconstruction matches its label: exact sums over tokens in float64, divided once at the end.

Two quantities are taken relative to the mean label, FVU and the legacy explained variance. The second is a mean of
per-token ratios, which no running sum can give, so the mean of the evaluated labels is found first
(:class:`LabelMean`); with it every metric is one pass of plain sums, and results do not depend on how the tokens were
cut into batches.

Notation: x label, r reconstruction, mu mean of the evaluated labels, all raw; sums and means run over the kept
(unmasked) tokens. With several written hook points each has its own sums; the overall figures add numerators and
denominators (or per-token terms and their counts) over hook points.

Massive tokens (pipeline/norms/exclusion.py) hold nearly all of mu and of the sums. The figures that end in _ordinary have sums
of their own over all other tokens, with the mean of those labels, nu; where no token is massive they are the same sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipeline.errors import NumericsError
from pipeline.evaluation.intervals import DocumentSums, ratio_interval, with_interval
from pipeline.evaluation.medians import StreamingMedian

ORDINARY = {
    "fvu": "fvu_ordinary",
    "fvu_low": "fvu_ordinary_low",
    "fvu_high": "fvu_ordinary_high",
    "explained_variance": "explained_variance_ordinary",
    "zero_fvu": "zero_fvu_ordinary",
}


def kept_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Kept tokens of `x` [..., D] as rows [n, D] in float64; `mask` [...] is True where a token is kept."""
    rows = x.detach().reshape(-1, x.shape[-1])
    if mask is not None:
        rows = rows[mask.reshape(-1)]
    return rows.to(torch.float64)


def check_finite(rows: Tensor, mask: Tensor | None, shape: torch.Size, what: str, where: str) -> None:
    """Refuse kept rows [n, ...] that hold a non-finite value.

    Args:
        mask: bool `shape`, True where a row was kept; None: all were.
        what: "activation" or "reconstruction".
        where: hook point and contexts, the start of the message.

    Raises:
        NumericsError: names the first such token by its place in the batch.
    """
    finite = torch.isfinite(rows.flatten(1).sum(-1) if rows.ndim > 1 else rows)
    if bool(finite.all()):
        return
    row = int((~finite).nonzero()[0])
    flat = row if mask is None else int(mask.reshape(-1).nonzero()[row])
    place = ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(flat), shape))
    raise NumericsError(f"{where}: the {what} is not finite at token [{place}] of the batch")


def kept_of(marks: Tensor, mask: Tensor | None) -> Tensor:
    """Values [...] of tokens, of the kept ones: [n]."""
    return marks.reshape(-1) if mask is None else marks.reshape(-1)[mask.reshape(-1).to(marks.device)]


class LabelMean:
    """Streaming mean vectors over kept tokens, in float64 on the CPU: of all, and of those that are not massive."""

    def __init__(self) -> None:
        self.n = self.n_massive = 0
        self.total: Tensor | None = None  # of the tokens that are not massive
        self.massive: Tensor | None = None

    def update(self, label: Tensor, mask: Tensor | None = None, where: str = "", massive: Tensor | None = None) -> None:
        """Add the kept tokens of `label` [..., D]; a non-finite one is a NumericsError that starts with `where`.

        Args:
            massive: bool [...], True for a massive token; None: none is.
        """
        rows_ND = kept_rows(label, mask)
        check_finite(rows_ND, mask, label.shape[:-1], "activation", where)
        self.n += len(rows_ND)
        if massive is not None:
            massive_N = kept_of(massive, mask).to(rows_ND.device)
            apart_D = rows_ND[massive_N].sum(0).cpu()
            self.massive = apart_D if self.massive is None else self.massive + apart_D
            self.n_massive += int(massive_N.sum())
            rows_ND = rows_ND[~massive_N]
        total_D = rows_ND.sum(0).cpu()
        self.total = total_D if self.total is None else self.total + total_D

    def add_all(self, other: LabelMean) -> None:
        """Add what another one has counted."""
        self.n, self.n_massive = self.n + other.n, self.n_massive + other.n_massive
        self.total, self.massive = _both(self.total, other.total), _both(self.massive, other.massive)

    def value(self, hook: str) -> Tensor:
        """The mean vector [D].

        Raises:
            NumericsError: no token was kept; the message names the hook point.
        """
        if self.total is None or self.n == 0:
            raise NumericsError(f"{hook}: no token to evaluate: every position is masked; evaluate on other tokens")
        return (self.total if self.massive is None else self.total + self.massive) / self.n

    def ordinary(self, hook: str) -> Tensor | None:
        """That of the tokens that are not massive (of all where every one is); None: none is massive, it is `value`."""
        if self.n_massive == 0 or self.total is None:
            return None
        return self.value(hook) if self.n_massive == self.n else self.total / (self.n - self.n_massive)


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of those that are there."""
    return other if one is None else one if other is None else one + other


def _terms(x_ND: Tensor, r_ND: Tensor, centred_N: Tensor) -> dict[str, Tensor]:
    """What each sum is over: [n], or fewer where a term is not defined of every token."""
    error_N = (x_ND - r_ND).square().sum(-1)
    x2_N, r2_N, inner_N = x_ND.square().sum(-1), r_ND.square().sum(-1), (x_ND * r_ND).sum(-1)
    lengths_N = (x2_N * r2_N).sqrt()
    cosine_N = torch.where(lengths_N > 0, inner_N / lengths_N.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    has_length, has_spread = x2_N > 0, centred_N > 0
    return {
        "error": error_N,
        "variance": centred_N,
        "label_square": x2_N,
        "square": r2_N,
        "inner": inner_N,
        "length_in": x2_N.sqrt(),
        "length_out": r2_N.sqrt(),
        "length_error": error_N.sqrt(),
        "cosine": cosine_N,
        "ratio": (r2_N[has_length] / x2_N[has_length]).sqrt(),
        "ratio_n": has_length,
        "legacy": 1.0 - error_N[has_spread] / centred_N[has_spread],
        "legacy_n": has_spread,
    }


class ReconstructionSums:
    """The sums behind every reconstruction metric of one hook point (or, merged, of several).

    Args:
        mean: mean of the evaluated labels, [D].
        ordinary_mean: that of the labels that are not massive, [D]; None: none of all tokens is massive.

    Attributes:
        ordinary: the sums over the tokens that are not massive; None: they are `sums`.
        errors: of ||x - r||^2 / ||x - nu||^2, of all kept tokens (without those equal to nu).
    """

    NAMES = (
        "error", "variance", "label_square", "square", "inner",
        "cosine", "ratio", "ratio_n", "legacy", "legacy_n", "n", "length_in", "length_out",
        "length_error",
    )  # fmt: skip
    ORDINARY_NAMES = ("error", "variance", "label_square")

    def __init__(self, mean: Tensor | None = None, ordinary_mean: Tensor | None = None) -> None:
        self.mean = None if mean is None else mean.to(torch.float64)
        self.ordinary_mean = None if ordinary_mean is None else ordinary_mean.to(torch.float64)
        self.sums = dict.fromkeys(self.NAMES, 0.0)
        self.ordinary = None if ordinary_mean is None else dict.fromkeys(self.ORDINARY_NAMES, 0.0)
        self.documents = DocumentSums()
        self.errors = StreamingMedian()

    def update(
        self,
        x_hat: Tensor,
        label: Tensor,
        mask: Tensor | None = None,
        where: str = "",
        documents: Tensor | None = None,
        massive: Tensor | None = None,
    ) -> None:
        """Add the kept tokens of `label` and its reconstruction `x_hat`, both [..., D] in raw space.

        Args:
            documents: int64 [...], of the tokens, for the interval of FVU; None: no interval.
            massive: bool [...], True for a massive token; None: none of these is.

        Raises:
            NumericsError: a label or a reconstruction is not finite; the message starts with `where`.
        """
        if self.mean is None:
            raise ValueError("sums that were merged from several hook points take no more tokens")
        x_ND, r_ND = kept_rows(label, mask), kept_rows(x_hat, mask)
        centred_N = (x_ND - self.mean.to(x_ND.device)).square().sum(-1)
        added = _terms(x_ND, r_ND, centred_N)
        check_finite(added["label_square"], mask, label.shape[:-1], "activation", where)
        check_finite(added["square"], mask, label.shape[:-1], "reconstruction", where)
        totals = torch.stack([value.sum(dtype=torch.float64) for value in added.values()]).tolist()
        for name, value in zip(added, totals, strict=True):
            self.sums[name] += value
        self.sums["n"] += len(x_ND)
        documents_N, massive_N = (None if t is None else kept_of(t, mask) for t in (documents, massive))
        if documents_N is not None:
            self.documents.add("error", added["error"], documents_N)
            self.documents.add("variance", centred_N, documents_N)
        if self.ordinary_mean is not None:
            centred_N = (x_ND - self.ordinary_mean.to(x_ND.device)).square().sum(-1)
            self._add_ordinary({**added, "variance": centred_N}, massive_N, documents_N)
        self.errors.add(added["error"][centred_N > 0] / centred_N[centred_N > 0])

    def _add_ordinary(self, added: Mapping[str, Tensor], massive_N: Tensor | None, documents_N: Tensor | None) -> None:
        """Add quantities [n] of tokens, massive ones left out."""
        assert self.ordinary is not None
        chosen = {name: added[name] for name in self.ORDINARY_NAMES}
        if massive_N is not None:
            chosen = {name: value[~massive_N.to(value.device)] for name, value in chosen.items()}
            documents_N = None if documents_N is None else documents_N[~massive_N.to(documents_N.device)]
        for name, value in chosen.items():
            self.ordinary[name] += float(value.sum())
        if documents_N is not None:
            self.documents.add("ordinary error", chosen["error"], documents_N)
            self.documents.add("ordinary variance", chosen["variance"], documents_N)

    def add_all(self, other: ReconstructionSums) -> None:
        """Add the sums of other tokens, or of another hook point: numerators and denominators are added."""
        for name in self.NAMES:
            self.sums[name] += other.sums[name]
        if other.ordinary is not None:
            before = self.ordinary or dict.fromkeys(self.ORDINARY_NAMES, 0.0)
            self.ordinary = {name: before[name] + other.ordinary[name] for name in before}
        self.documents.add_all(other.documents)
        self.errors.add_all(other.errors)

    @classmethod
    def merged(cls, parts: Iterable[ReconstructionSums]) -> ReconstructionSums:
        """The sums of several hook points together."""
        merged = cls()
        for part in parts:
            merged.add_all(part)
        return merged

    def of_documents(self, documents: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """{FVU that is compared: its numerators and denominators, float64 [n], at documents int64 [n]}: that of the tokens that
        are not massive, unless their labels do not vary."""
        known = self.ordinary is None or self.ordinary["variance"] != 0
        prefix = "" if self.ordinary is None or not known else "ordinary "
        errors, variances = self.documents.at(documents, f"{prefix}error", f"{prefix}variance")
        return {"fvu_ordinary" if known else "fvu": (errors, variances)}

    @property
    def ordinary_variance(self) -> float:
        """Sum of ||x - nu||^2 over the tokens that are not massive."""
        return (self.sums if self.ordinary is None else self.ordinary)["variance"]

    def results(self, where: str) -> dict[str, float]:
        """The metrics.

        fvu = sum ||x - r||^2 / sum ||x - mu||^2; explained_variance = 1 - fvu. fvu_low, fvu_high: 95 % interval over
        documents (intervals.py), mu held fixed, where the documents are known.
        explained_variance_legacy = mean over tokens of 1 - ||x - r||^2 / ||x - mu||^2 (without tokens equal to mu).
        mse = mean over tokens (and hook points) of ||x - r||^2, summed over D.
        nmse = sum ||x - r||^2 / sum ||x||^2.
        cosine_similarity = mean over tokens of <x, r> / (||x|| ||r||), 0 where either is zero.
        l2_ratio = mean over tokens of ||r|| / ||x|| (without tokens where x = 0).
        l2_norm_in, l2_norm_out, l2_norm_error = means over tokens of ||x||, ||r|| and ||x - r||;
        l2_norm_error_ratio = sum ||x - r|| / sum ||x||. Source of the last two: Language-Model-SAEs (of each batch, there).
        relative_reconstruction_bias = sum ||r||^2 / sum <x, r>: 1 is unbiased, below 1 is shrunken. Source: SAEBench
        (Karvonen et al. 2025), which follows Wright and Sharkey 2024.

        zero_fvu = sum ||x||^2 / sum ||x - mu||^2: FVU of zero in the reconstruction's place (of mu it is 1).

        fvu_ordinary (with its interval), explained_variance_ordinary, zero_fvu_ordinary: the same sums over the tokens that
        are not massive, nu in the place of mu. fvu_massive_share = 1 - sum ||x - nu||^2 over those / sum ||x - mu||^2 over all,
        0 where no token is massive. normalized_error_q50 = median over all kept tokens of
        ||x - r||^2 / ||x - nu||^2, to 5.1e-4 relative (medians.py), without tokens equal to nu.

        Left out is what is undefined: FVU and explained variance where the labels do not vary, nmse and ratios where all
        are zero, the bias where reconstructions and labels have no common part (a reconstruction of zero everywhere).

        Raises:
            NumericsError: there is no token; names `where`.
        """
        s = self.sums
        if s["n"] == 0:
            raise NumericsError(f"{where}: no token to evaluate: every position is masked; evaluate on other tokens")
        quotients = {
            "fvu": (s["error"], s["variance"]),
            "zero_fvu": (s["label_square"], s["variance"]),
            "explained_variance_legacy": (s["legacy"], s["legacy_n"]),
            "mse": (s["error"], s["n"]),
            "nmse": (s["error"], s["label_square"]),
            "cosine_similarity": (s["cosine"], s["n"]),
            "l2_ratio": (s["ratio"], s["ratio_n"]),
            "l2_norm_in": (s["length_in"], s["n"]),
            "l2_norm_out": (s["length_out"], s["n"]),
            "l2_norm_error": (s["length_error"], s["n"]),
            "l2_norm_error_ratio": (s["length_error"], s["length_in"]),
            "relative_reconstruction_bias": (s["square"], s["inner"]),
        }
        results = {name: over / under for name, (over, under) in quotients.items() if under}
        if "fvu" in results:
            results["explained_variance"] = 1.0 - results["fvu"]
            errors, variances = self.documents.of("error", "variance")
            results |= with_interval("fvu", ratio_interval(errors, variances))
        median = self.errors.value()
        if s["variance"]:
            results["fvu_massive_share"] = 1.0 - self.ordinary_variance / s["variance"]
        return results | self._ordinary_results(results) | ({} if median is None else {"normalized_error_q50": median})

    def _ordinary_results(self, plain: Mapping[str, float]) -> dict[str, float]:
        """Those that end in _ordinary; where no token is massive the plain ones under their names."""
        s = self.ordinary
        if s is None:
            return {ordinary: plain[name] for name, ordinary in ORDINARY.items() if name in plain}
        if not s["variance"]:
            return {}
        fvu = s["error"] / s["variance"]
        found = {"fvu": fvu, "explained_variance": 1.0 - fvu, "zero_fvu": s["label_square"] / s["variance"]}
        errors, variances = self.documents.of("ordinary error", "ordinary variance")
        found |= with_interval("fvu", ratio_interval(errors, variances))
        return {ORDINARY[name]: value for name, value in found.items()}


class ReconstructionMetrics:
    """Reconstruction metrics of one or several written hook points.

    Args:
        means: {hook: mean label [D]} of the evaluated labels, in the order of the dictionary's written hook points.
        ordinary: the same of those that are not massive; None, or a hook point's None: none of all tokens is massive.
    """

    def __init__(self, means: Mapping[str, Tensor], ordinary: Mapping[str, Tensor | None] | None = None) -> None:
        self.parts = {hook: ReconstructionSums(mean, (ordinary or {}).get(hook)) for hook, mean in means.items()}

    @classmethod
    def of(cls, means: Mapping[str, LabelMean]) -> ReconstructionMetrics:
        """With the means that a first pass has found."""
        plain = {hook: mean.value(hook) for hook, mean in means.items()}
        return cls(plain, {hook: mean.ordinary(hook) for hook, mean in means.items()})

    def update(
        self,
        x_hats: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        mask: Tensor | None = None,
        context: str = "",
        documents: Tensor | None = None,
        massive: Tensor | None = None,
    ) -> None:
        """Add a batch: {hook: [..., D]} reconstructions and labels, `mask` [...] True where kept, `documents` [...].

        Args:
            massive: bool [...], True for a massive token; None: none of these is.
        """
        for hook, part in self.parts.items():
            where = f"{hook}, {context}" if context else hook
            part.update(x_hats[hook], labels[hook], mask, where=where, documents=documents, massive=massive)

    def add_all(self, other: ReconstructionMetrics) -> None:
        """Add the sums of other tokens, relative to the same means."""
        for hook, part in self.parts.items():
            part.add_all(other.parts[hook])

    @property
    def tokens(self) -> int:
        """Kept tokens so far."""
        return int(next(iter(self.parts.values())).sums["n"])

    def of_documents(self, documents: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """As of :class:`ReconstructionSums`, of all hook points together."""
        return ReconstructionSums.merged(self.parts.values()).of_documents(documents)

    def results(self) -> dict[str, float]:
        """Overall metrics; with several hook points also each metric as `<metric>.<hook>`.

        Raises:
            NumericsError: there is no token, or FVU is undefined of all hook points together.
        """
        where = ", ".join(self.parts)
        results = ReconstructionSums.merged(self.parts.values()).results(where)
        if "fvu" not in results:
            raise NumericsError(
                f"{where}: FVU is undefined: the {self.tokens} evaluated labels do not vary; evaluate on more tokens"
            )
        for hook, part in self.parts.items() if len(self.parts) > 1 else ():
            results.update({f"{name}.{hook}": value for name, value in part.results(hook).items()})
        return results
