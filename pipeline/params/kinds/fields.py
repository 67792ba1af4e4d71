"""The fields and rules that every kind of dictionary has; each kind's own ones are in its file beside this one.

Nothing here asks whether a kind is stated in a parameter file (sections/dictionary.py) or belongs to tensors in memory
(dictionary_config.py), so that hook points are names without a meaning but their order.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.params.choices import NORM_ACTIVATIONS, WEIGHT_DTYPES
from pipeline.params.fields import param
from pipeline.params.gates import GATES, GateDeclaration
from pipeline.params.section import Section, rule
from pipeline.params.sections.tracking import MLFLOW_NAME

NAME_FORM = (r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "at most 100 letters, digits, '.', '_' and '-'")


@dataclass(frozen=True)
class DictionaryFields(Section, abc.ABC):
    """A kind of dictionary.

    Attributes:
        HAS_LAYERS: features of several layers, which may compete for one budget.
        ONE_DECODER: a feature has one decoder row, so that unit_norm and Matryoshka prefixes make sense.
        READS_SEQUENCES: contexts stay whole (activations.target activations-2d).
        WRITES_ELSEWHERE: it never writes what it reads.
        DRAWN_BY_BOUNDS: the base draw takes the initializer's uniform bounds and its transpose factor.
        ONE_WIDTH: all its hook points must be equally wide.
    """

    NAME: ClassVar[str] = "dictionary"
    HAS_LAYERS: ClassVar[bool] = False
    ONE_DECODER: ClassVar[bool] = False
    READS_SEQUENCES: ClassVar[bool] = False
    WRITES_ELSEWHERE: ClassVar[bool] = False
    DRAWN_BY_BOUNDS: ClassVar[bool] = True
    ONE_WIDTH: ClassVar[bool] = False

    name: str = param("main", form=NAME_FORM, about="directory name under data/initial, data/trained and data/inference")
    kind: str = param("", about="kind of dictionary")
    act_fn: str = param(
        "relu",
        choices=GATES,
        also_called=("activation", "activation_fn"),
        about="activation function (those with layer: clt only)",
    )
    top_k: int = param(50, at_least=1, also_called=("k",), about="active features per token (topk family)")
    use_decoder_bias: bool = param(True, about="true: reconstructions have a bias b_D")
    sparsity_include_decoder_norm: bool = param(True, about="true: features are selected by activation times decoder norm")
    norm_activation: str = param(
        "dataset-wise",
        choices=NORM_ACTIVATIONS,
        also_called=("norm",),
        about="factor on activations",
    )
    jumprelu_threshold_window: float = param(
        2.0, more_than=0, about="full width of the window in which a JumpReLU threshold gets a gradient"
    )
    dtype: str = param("float32", choices=WEIGHT_DTYPES, about="dtype of the weights")
    use_triton_kernel: bool | str = param(
        "auto",
        words=("auto",),
        about="sums over chosen entries by Triton kernels: true | false | auto: on CUDA",
    )
    sparsity_threshold_for_triton_spmm_kernel: float = param(
        0.996,
        at_least=0,
        at_most=1,
        about="share of inactive features from which these kernels take the place of dense products",
    )
    sae_name: str | None = param(None, form=MLFLOW_NAME, about="name recorded in config.json and as a tag; null: none")
    sae_series: str | None = param(None, form=MLFLOW_NAME, about="series recorded in config.json and as a tag; null: none")

    if TYPE_CHECKING:

        @property
        def d_model(self) -> int | None:
            """Width of what is read; None: a parameter file does not say."""

        @property
        def d_sae(self) -> int | None:
            """Number of features (of each layer); None likewise."""

    @property
    @abc.abstractmethod
    def hooks_in(self) -> tuple[str, ...]:
        """The hook points that are read, in the order of the input."""

    @property
    @abc.abstractmethod
    def hooks_out(self) -> tuple[str, ...]:
        """The hook points that are written, in the order of the output."""

    @property
    def dealt(self) -> tuple[str, int | None]:
        """What of it is dealt to processes, in words, and how many there are; None: a parameter file does not say."""
        return "features of each layer" if self.HAS_LAYERS else "features", self.d_sae

    @classmethod
    def named(cls, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Names for hook points that `stated` leaves out or null, as tensors in memory may."""
        return {}

    @property
    def layers(self) -> int:
        """L: how many layers of d_sae features a token has, one for each hook point read, or 1."""
        return len(self.hooks_in) if self.HAS_LAYERS else 1

    @property
    def k_layers(self) -> int:
        """How many layers share one top_k: 1, or L where it counts the features of all layers of a token."""
        return 1

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes another hook point than the one it reads (kind clt: of each layer)."""
        return False

    @property
    def head_width(self) -> int | None:
        """Width of a query-key head, of kinds that have some."""
        return None

    @property
    def max_context(self) -> int | None:
        """Most tokens of a context, of kinds that read whole contexts; None: any number."""
        return None

    @property
    def gate(self) -> GateDeclaration:
        """What act_fn is declared as."""
        return GATES.get(self.act_fn)

    @property
    def is_topk_family(self) -> bool:
        """Whether the gate keeps a number of features (topk, batchtopk), not those above a threshold."""
        return self.gate.budgeted

    @property
    def is_batch_dependent(self) -> bool:
        """Whether the gate looks at a whole batch, so that the fold stage replaces it."""
        return self.gate.batch_dependent

    @rule("act_fn")
    def _layers_compete_where_there_are_some(self) -> str | None:
        if not self.gate.joint_layers or self.HAS_LAYERS:
            return None
        plain = f"; take {self.gate.of_one_layer}" if self.gate.of_one_layer else ""
        return f"{self.act_fn} lets the layers of a token compete, and kind {self.kind} has one{plain}"
