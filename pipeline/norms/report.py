"""What the norm stage says: figures of each hook point's norms, and where the massive tokens are.

metrics/norm.json          flat: `median_norm.blocks.2.hook_resid_post`; names in pipeline/metric_names.py
metrics/plots/norm/        activation_norm.png, massive_positions.png where there are massive tokens, index.html of both
a line on the terminal     for each hook point with massive tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import atomic_directory
from pipeline.metric_names import NORM
from pipeline.norms.charts import norm_histograms
from pipeline.norms.exclusion import MASSIVE_FACTOR
from pipeline.norms.hook_norm import HookNorm
from pipeline.norms.massive import MassiveTokens, commonest
from pipeline.plots.charts import number
from pipeline.plots.histograms import position_chart
from pipeline.plots.page import Row, Table
from pipeline.plots.training_report import write_report

LISTED = 10  # positions and tokens of each hook point, in figures and on the page
SAID = 5  # of them on the terminal


@dataclass(frozen=True)
class NormReport:
    """Norms and massive tokens of the hook points of a store.

    Attributes:
        norms: {hook point: what data/norms.json says}.
        massive: where the massive tokens are.
        text: text of a token id of the model that a hook point is of; None: not known. Asked only of massive tokens.
    """

    norms: Mapping[str, HookNorm]
    massive: MassiveTokens
    text: Callable[[str, int], str | None]

    @property
    def hook_points(self) -> list[str]:
        """Those with massive tokens, in the order of the norms."""
        return [hook for hook in self.norms if hook in self.massive.positions]

    def metrics(self) -> dict[str, Any]:
        """metrics/norm.json: numbers, and of hook points with massive tokens two lists of plain values."""
        anywhere = self.massive.n_anywhere
        excluding = any(norm.max_norm is not None for norm in self.norms.values())
        found: dict[str, Any] = {"n_massive": anywhere, "n_excluded": anywhere if excluding else 0}
        for hook, norm in self.norms.items():
            found |= {f"{name}.{hook}": value for name, value in norm_figures(norm).items()}
        for hook in self.hook_points:
            positions = commonest(self.massive.positions[hook], LISTED)
            found[f"massive_positions.{hook}"] = [{"position": at, "count": count} for at, count in positions]
            found[f"massive_tokens.{hook}"] = [
                {"id": token, "count": count} | ({} if (text := self.text(hook, token)) is None else {"text": text})
                for token, count in commonest(self.massive.tokens[hook], LISTED)
            ]
        return found

    def lines(self) -> list[str]:
        """What is said of each hook point with massive tokens."""
        return [f"{hook}: {self._line(self.norms[hook], hook)}" for hook in self.hook_points]

    def write_plots(self, folder: str | Path, about: str, *, norms: str | Path, statistics: str | Path) -> None:
        """Write the directory `folder`, whole or not at all: histograms, positions of massive tokens, figures.

        Args:
            folder: what is there is replaced.
            about: what was measured.
            norms, statistics: what the norm stage wrote.
        """
        context = self.massive.context_size
        charts = norm_histograms(norms, statistics, "median_norm")
        charts += [position_chart(hook, self.massive.positions[hook], context) for hook in self.hook_points]
        with atomic_directory(folder) as place:
            write_report(place, "Activation norms", about, charts, tables=self._tables(), more=[self._figures()])

    def _line(self, norm: HookNorm, hook: str) -> str:
        assert norm.median_norm is not None
        assert norm.largest_norm is not None
        n, total = norm.n_massive, norm.n_tokens + norm.n_massive
        rule = (
            "kept (activations.max_norm_factor is null); means, the start of the weights and thresholds go without them"
            if norm.max_norm is None
            else "excluded everywhere (activations.max_norm_factor: null keeps them)"
        )
        return (
            f"{n:,} of {total:,} tokens ({number(100 * n / total)} %) {'is' if n == 1 else 'are'} longer than "
            f"{norm.max_norm_factor or MASSIVE_FACTOR:g} x the median norm {norm.median_norm:.4g}, "
            f"up to {norm.largest_norm / norm.median_norm:,.0f} x: positions {self._positions(hook, SAID)}; "
            f"tokens {self._tokens(hook, SAID)}; {rule}"
        )

    def _positions(self, hook: str, n: int) -> str:
        counts = self.massive.positions[hook]
        return _listed([f"{at:,} ({count:,})" for at, count in commonest(counts, n)], len(counts))

    def _tokens(self, hook: str, n: int) -> str:
        counts = self.massive.tokens[hook]
        found = [(self.text(hook, token), token, count) for token, count in commonest(counts, n)]
        return _listed([f"{f'id {i}' if text is None else repr(text)} ({count:,})" for text, i, count in found], len(counts))

    def _tables(self) -> list[Table]:
        """Where the massive tokens are, if there are any."""
        rows = [Row(hook, "", (self._positions(hook, LISTED), self._tokens(hook, LISTED))) for hook in self.hook_points]
        note = "Positions in the context and texts of tokens, the commonest first, each with the number of massive tokens."
        return [Table("Massive tokens", ("positions", "tokens"), tuple(rows), note)] if rows else []

    def _figures(self) -> Table:
        """Figures, a column for each hook point."""
        figures = [norm_figures(norm) for norm in self.norms.values()]
        rows = [
            Row(name, about, tuple(each.get(name) for each in figures))
            for name, about in NORM.items()
            if any(name in each for each in figures)
        ]
        return Table("Figures", tuple(self.norms), tuple(rows))


def norm_figures(norm: HookNorm) -> dict[str, float]:
    """Figures of one hook point, by the names of metric_names.NORM; without those that were not measured."""
    names = ("mean_norm", "median_norm", "largest_norm", "massive_norm", "n_tokens", "n_massive", "n_excluded")
    found = {name: value for name in names if (value := getattr(norm, name)) is not None}
    found |= {f"norm_q{q.removeprefix('0.').ljust(2, '0')}": value for q, value in norm.norm_quantiles.items()}
    return found | {"massive_fraction": norm.n_massive / (norm.n_tokens + norm.n_massive)}


def _listed(parts: Sequence[str], n: int) -> str:
    """The parts, and how many of the `n` there are beyond them."""
    return ", ".join(parts) + (f" and {n - len(parts):,} more" if n > len(parts) else "")
