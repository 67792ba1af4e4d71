"""The activation functions, declared: what parameters must know of a gate. The code is in pipeline/activation_functions."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.registry import Registry

_CODE = "pipeline.activation_functions"


@dataclass(frozen=True)
class GateDeclaration:
    """One activation function.

    Attributes:
        name: act_fn.
        implementation: `module:class`, a subclass of ActivationFunction.
        budgeted: the number of active features is bounded by k; the topk family, for which AuxK makes sense.
        batch_dependent: whether a feature is active depends on the other tokens of the batch: not an inference form.
        has_threshold: a learned threshold for each feature, log_jumprelu_threshold.
        joint_layers: the layers of a token compete with one another; only for kinds with features for each layer.
        topk_start: trainer.topk_start_steps may train with TopK first.
        of_one_layer: of a gate with joint layers, the one that does the same within a layer.
        dealable: it does the same where each process has some of the features (GateSettings.feature_group).
    """

    name: str
    implementation: str
    budgeted: bool = False
    batch_dependent: bool = False
    has_threshold: bool = False
    joint_layers: bool = False
    topk_start: bool = False
    of_one_layer: str | None = None
    dealable: bool = False


GATES: Registry[GateDeclaration] = Registry(
    "activation function",
    "scopeline.activation_functions",
    (
        GateDeclaration("relu", f"{_CODE}.relu:ReLU", dealable=True),
        GateDeclaration("jumprelu", f"{_CODE}.jumprelu:JumpReLU", has_threshold=True, topk_start=True, dealable=True),
        GateDeclaration("topk", f"{_CODE}.topk:TopK", budgeted=True, dealable=True),
        GateDeclaration(
            "batchtopk", f"{_CODE}.batchtopk:BatchTopK", budgeted=True, batch_dependent=True, topk_start=True, dealable=True
        ),
        GateDeclaration(
            "layertopk", f"{_CODE}.layertopk:LayerTopK", budgeted=True, joint_layers=True, of_one_layer="topk", dealable=True
        ),
        GateDeclaration(
            "batchlayertopk",
            f"{_CODE}.batchlayertopk:BatchLayerTopK",
            budgeted=True,
            batch_dependent=True,
            joint_layers=True,
            of_one_layer="batchtopk",
            dealable=True,
        ),
    ),
)
