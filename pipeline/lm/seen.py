"""What a run of a model without values shows of its hook points: how wide they are, and in which order they occur."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DataError, PipelineError
from pipeline.lm.quiet import quiet
from pipeline.lm.splicing import Run

if TYPE_CHECKING:
    from pipeline.lm.source import ModelSource

_SHAPE = (2, 3)  # batch and tokens, told apart


class _Watching(Run):
    """A run that notes what it is shown.

    Attributes:
        shapes: {hook point: shapes}, one for each time that it occurred.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(capture=frozenset(names))
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def visit(self, name: str, value: Tensor | Callable[[], Tensor]) -> Tensor | Callable[[], Tensor]:
        """Note the shape."""
        shown = value if isinstance(value, Tensor) else value()
        self.shapes.setdefault(name, []).append(tuple(shown.shape))
        return value


def see(source: ModelSource, names: Sequence[str]) -> dict[str, int]:
    """{hook point: width}, in the order in which they occur in a run.

    Nothing is computed: the model's parameters and all that comes of them have shapes only.

    Raises:
        DataError: there is no such hook point, it does not occur just once in a run, or its activation is no [batch, token,
            width].
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from pipeline.lm.huggingface import HuggingFaceModel
    from pipeline.lm.weights import empty_model

    # In bfloat16: some kernels of mixtures of experts take nothing else on a device without values.
    module = empty_model(source).to(torch.bfloat16).eval()
    run, fault = _Watching(names), ""
    tokens = torch.zeros(_SHAPE, dtype=torch.int64, device="meta")
    with quiet(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            HuggingFaceModel(source, module)._forward(tokens, run)
        except PipelineError:
            raise
        except Exception as error:  # what a model does with values cannot be done here; what was seen before is right
            fault = f" ({type(error).__name__})"
    for name in names:
        shapes = run.shapes.get(name, [])
        if len(shapes) != 1:
            times = f"{len(shapes)} times" if shapes else "not at all"
            raise DataError(
                f"hook point '{name}': its module runs {times} in a run of {source.name}{fault}, wanted once; name another one"
            )
        if shapes[0][:-1] != _SHAPE:
            raise DataError(
                f"hook point '{name}': for {list(_SHAPE)} tokens its activation has shape {list(shapes[0])}, wanted [batch, "
                "token, width]; name another module"
            )
    return {name: shapes[0][-1] for name, shapes in run.shapes.items()}
