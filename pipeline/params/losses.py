"""The sparsity losses, declared: what parameters must know of each. The code is in pipeline/losses/sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.registry import Registry

_CODE = "pipeline.losses.sparsity"


@dataclass(frozen=True)
class SparsityLossDeclaration:
    """One sparsity loss.

    Attributes:
        name: trainer.sparsity_loss_type.
        implementation: `module:attribute`, a SparsityLoss or a function of SparsityInputs.
        uses: keys of the section trainer that it takes by keyword.
        fields: keys of its own, which the section trainer has where this loss is chosen: {name: (type, param(...))}.
        metric: name of its term in the metrics, where it is another one.
        needs_thresholds: it trains thresholds, and nothing else.
        steerable: target_l0_mode coefficient may steer its weight.
        dealable: it does the same where each process has some of the features (SparsityInputs.over_features).
    """

    name: str
    implementation: str
    uses: tuple[str, ...] = ()
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    metric: str | None = None
    needs_thresholds: bool = False
    steerable: bool = True
    dealable: bool = False


SPARSITY_LOSSES: Registry[SparsityLossDeclaration] = Registry(
    "sparsity loss",
    "scopeline.sparsity_losses",
    (
        SparsityLossDeclaration(
            "l0",
            f"{_CODE}.l0:LOSS",
            ("l0_bandwidth", "target_l0", "target_l0_mode"),
            metric="l0_loss",
            needs_thresholds=True,
            steerable=False,
            dealable=True,
        ),
        SparsityLossDeclaration("power", f"{_CODE}.power:power_loss", ("p",), dealable=True),
        SparsityLossDeclaration("tanh", f"{_CODE}.tanh:tanh_loss", ("tanh_stretch_coefficient",), dealable=True),
        SparsityLossDeclaration(
            "tanh-quad", f"{_CODE}.tanh_quad:LOSS", ("tanh_stretch_coefficient", "frequency_scale"), dealable=True
        ),
    ),
)
