"""What a reconstruction costs the language model: cross entropy and KL divergence with activations replaced.

Interventions replace the activation at every written hook point at once, at kept positions only; masked positions
(special tokens) keep the original, and so do excluded tokens (massive ones, pipeline/norms/exclusion.py). Cross entropy counts
the predictions of kept tokens at positions >= 1, excluded ones too, made at the position before; KL divergence counts the
same predictions. Both are means over those predictions, in nats: logits in float32, sums in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import NumericsError
from pipeline.evaluation.intervals import DocumentSums, ratio_interval, with_interval
from pipeline.hook_keys import MAIN

if TYPE_CHECKING:
    from pipeline.evaluation.massive import TokenMasks
    from pipeline.evaluation.raw_space import RawDictionary

Replacement = Callable[[Mapping[str, Tensor], Tensor], Tensor]

CHUNK_ENTRIES = 2**19  # logits turned to probabilities at once: few enough to stay in a cache (2**22 took twice as long)


def keep_masked(mask_BT: Tensor, new_BTD: Tensor, original_BTD: Tensor) -> Tensor:
    """`new` at kept positions, `original` at masked ones, in the dtype and on the device of the original."""
    new_BTD = new_BTD.to(original_BTD.device, original_BTD.dtype)
    return torch.where(mask_BT.to(original_BTD.device)[..., None], new_BTD, original_BTD)


def constant_replacements(vectors: Mapping[str, Tensor], mask_BT: Tensor) -> dict[str, Replacement]:
    """Ablation: replace the activation at each hook point by one vector [D] (zero, or a mean), where `mask` is True."""

    def replacement(vector: Tensor) -> Replacement:
        return lambda captured, original: keep_masked(mask_BT, vector.to(original).expand_as(original), original)

    return {hook: replacement(vector) for hook, vector in vectors.items()}


def splice_replacements(
    raw: RawDictionary,
    originals: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    tokens: TokenMasks,
    hooks: Sequence[str] | None = None,
) -> dict[str, Replacement]:
    """Splice the dictionary's reconstructions in, computed from the spliced run itself.

    Each input is taken as it occurs in the spliced run, before the dictionary replaces it; at a hook point that writes
    before a later input has occurred, that input is taken from the unspliced run, and so is an input of another model.
    Cross-layer transcoders whose layers have gates of their own do not look at it. Those with layertopk or batchlayertopk do:
    features of later layers compete for the one budget with gating values of the unspliced run, so that they decide with it
    which features of the earlier layers are open. A crosscoder of several layers reads it. Where the inputs are bit for bit
    those of the unspliced run, as at the first written hook point, the reconstruction that is already known is used.

    Args:
        raw: the dictionary.
        originals: {hook point: [b, T, D]} of the unspliced run, all read and written ones.
        known: {written hook point: reconstruction [b, T, D]} that the dictionary makes of `originals`.
        tokens: which are kept, and which are replaced.
        hooks: the written hook points to replace; None: all.
    """
    occurred: dict[str, Tensor] = {}

    def replacement(hook: str) -> Replacement:
        def replace(captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
            occurred[hook] = original
            inputs = {}
            for name in raw.hooks_in:
                if name not in occurred and name in captured:
                    occurred[name] = captured[name]
                inputs[name] = occurred.get(name, originals[name])
            labels = {name: occurred.get(name, originals[name]) for name in raw.hooks_out}
            unchanged = all(torch.equal(x, originals[name]) for name, x in [*inputs.items(), *labels.items()])
            x_hat = known[hook] if unchanged else raw(inputs, labels, tokens.kept, tokens.massive).x_hats[hook]
            return keep_masked(tokens.replaced, x_hat, original)

        return replace

    return {hook: replacement(hook) for hook in (raw.hooks_out if hooks is None else hooks)}


def prediction_loss(logits_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Cross entropy of each counted prediction, float32 [n], nats: -log softmax(logits[b, t])[tokens[b, t + 1]].

    Counted are the predictions of kept tokens: mask[b, t + 1] is True.
    """
    parts = []
    for rows in _row_chunks(logits_BTV):
        log_p = _log_probabilities(logits_BTV[rows])
        parts.append(_target_loss(log_p, tokens_BT[rows], mask_BT[rows]))
    return torch.cat(parts)


def prediction_divergence(
    logits_BTV: Tensor, other_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropies of both logits and KL(softmax(logits) || softmax(other)) of each counted prediction.

    Returns: float32 [n], float32 [n], float64 [n], nats.
    """
    first, second, divergence = [], [], []
    for rows in _row_chunks(logits_BTV):
        log_p, log_q = _log_probabilities(logits_BTV[rows]), _log_probabilities(other_BTV[rows])
        tokens, mask = tokens_BT[rows], mask_BT[rows]
        first.append(_target_loss(log_p, tokens, mask))
        second.append(_target_loss(log_q, tokens, mask))
        pointwise = log_q.neg_().add_(log_p).mul_(log_p.exp_())
        divergence.append(pointwise.sum(-1, dtype=torch.float64)[:, :-1][mask[:, 1:]])
    return torch.cat(first), torch.cat(second), torch.cat(divergence)


def _row_chunks(logits_BTV: Tensor) -> list[slice]:
    n_rows = len(logits_BTV)
    step = max(1, CHUNK_ENTRIES // max(1, logits_BTV[0].numel()))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def _log_probabilities(logits_BTV: Tensor) -> Tensor:
    """Of every position; the last one, which predicts nothing, would cost a copy of the rest to leave out."""
    return torch.log_softmax(logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float(), dim=-1)


def _target_loss(log_p_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    targets = tokens_BT[:, 1:, None].to(log_p_BTV.device, torch.int64)
    return -log_p_BTV[:, :-1].gather(-1, targets)[..., 0][mask_BT[:, 1:]]


class PredictionMetrics:
    """Means over counted predictions, by name of the intervention.

    Args:
        hooks: the written hook points, named in errors.
    """

    def __init__(self, hooks: tuple[str, ...]) -> None:
        self.hooks, self.where = hooks, ", ".join(hooks)
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.documents = DocumentSums()

    def update(self, name: str, values: Tensor, context: str, documents: Tensor | None = None) -> None:
        """Add values [n] of `name`: original, spliced, zero, mean, pca, kl, kl_zero.

        `<name>.<hook>`: that hook point replaced alone.

        Args:
            documents: int64 [n], of the predicted tokens, for the interval of delta_ce; None: no interval.

        Raises:
            NumericsError: one of them is not finite.
        """
        total = float(values.sum(dtype=torch.float64))
        if total != total or total in (float("inf"), float("-inf")):
            what = "KL divergence" if name.startswith("kl") else "cross entropy"
            raise NumericsError(f"{self.where}, {context}: the {what} of the {name} run is not finite")
        self.sums[name] = self.sums.get(name, 0.0) + total
        self.counts[name] = self.counts.get(name, 0) + len(values)
        if documents is not None:
            self.documents.add(name, values, documents)
            self.documents.add(f"number of {name}", torch.ones(len(values)), documents)

    def add_all(self, other: PredictionMetrics) -> None:
        """Add the sums of other predictions."""
        for name, total in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]
        self.documents.add_all(other.documents)

    def mean(self, name: str) -> float:
        """Mean over the counted predictions.

        Raises:
            NumericsError: there were none.
        """
        if self.counts.get(name, 0) == 0:
            raise NumericsError(f"{self.where}: no prediction to evaluate: every target is masked; evaluate on other tokens")
        return self.sums[name] / self.counts[name]

    def of_documents(self, documents: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """{"delta_ce": its numerators and denominators, float64 [n], at documents int64 [n]}."""
        before, after, number = self.documents.at(documents, "original", "spliced", "number of original")
        return {"delta_ce": (after - before, number)}

    def results(self) -> dict[str, float]:
        """The metrics, in nats where they are cross entropies.

        ce_original, ce_spliced, ce_zero, ce_mean: cross entropy of the model as it is, with the reconstruction spliced in,
        with zeros, and with the mean activation of the norm pass in its place.
        delta_ce = ce_spliced - ce_original; delta_ce_low, delta_ce_high: 95 % interval over documents (intervals.py).
        loss_recovered_zero = (ce_zero - ce_spliced) / (ce_zero - ce_original), loss_recovered_mean with ce_mean: 1 if the
        splice costs nothing, 0 if it is as bad as the ablation.
        kl = mean of KL(original || spliced); kl_zero with zeros in its place, where it was measured.
        pca_delta_ce: what PCA costs, where it was run.
        With several written hook points also <metric>.<hook> of all these but ce_original, that hook point alone being
        replaced.

        Raises:
            NumericsError: no prediction was counted, or an ablation changes nothing.
        """
        results = {"ce_original": self.mean("original"), **self._of_splice()}
        for hook in self.hooks:
            if f"spliced.{hook}" in self.counts:
                results |= self._of_splice(hook)
        return results

    def _of_splice(self, hook: str | None = None) -> dict[str, float]:
        """All hook points replaced, or one alone."""
        end = "" if hook is None else f".{hook}"
        original, spliced = self.mean("original"), self.mean(f"spliced{end}")
        before, after, number = self.documents.of("original", f"spliced{end}", "number of original")
        found = {"ce_spliced": spliced, "delta_ce": spliced - original, "kl": self.mean(f"kl{end}")}
        found |= with_interval("delta_ce", ratio_interval(after - before, number))
        for name in ("zero", "mean"):
            ablated = self.mean(f"{name}{end}")
            if ablated == original:
                raise NumericsError(
                    f"{hook or self.where}: loss_recovered_{name} is undefined: the {name} ablation leaves the cross entropy "
                    f"at {original:.6g}; does the model read this hook point?"
                )
            found[f"ce_{name}"] = ablated
            found[f"loss_recovered_{name}"] = (ablated - spliced) / (ablated - original)
        if f"kl_zero{end}" in self.counts:
            found["kl_zero"] = self.mean(f"kl_zero{end}")
        if f"pca{end}" in self.counts:
            found["pca_delta_ce"] = self.mean(f"pca{end}") - original
        return {f"{name}{end}": value for name, value in found.items()}


def main_of(by_alias: Mapping[str, object]) -> str:
    """The alias of the main model, or of the first one."""
    return MAIN if MAIN in by_alias else next(iter(by_alias))


def prediction_results(by_alias: Mapping[str, PredictionMetrics]) -> dict[str, float]:
    """The metrics of a dictionary that writes to several models: the main model's (or the first one's) as they are.

    Those of the others have the model's alias appended. The hook point of a model that has no other is replaced alone
    whenever it is replaced: its <metric>.<hook> are the model's own.
    """
    main = main_of(by_alias)
    results: dict[str, float] = {}
    for alias, predictions in by_alias.items():
        found = predictions.results()
        for hook in predictions.hooks if len(by_alias) > 1 and len(predictions.hooks) == 1 else ():
            results.update({f"{name}.{hook}": found[name] for name in found if name != "ce_original"})
        of_hooks = tuple(f".{hook}" for hook in predictions.hooks)
        suffix = "" if alias == main else f".{alias}"
        results.update({name if name.endswith(of_hooks) else f"{name}{suffix}": value for name, value in found.items()})
    return results
