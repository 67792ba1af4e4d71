"""The captured step: a replay on the CPU that, as a CUDA graph does, repeats the recorded operations on the recorded memory,
so that whatever a step reads from Python, or waits for, shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.kernels.reference import TorchEntries
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from pipeline.training.step_graph import WARM, StepGraph
from tests.training.cases import dictionary, rows, same, trainer

STEPS = 30
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Recorder(TorchDispatchMode):
    """Keeps every operation with the tensors that it read and made."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        made = func(*args, **(kwargs or {}))
        self.records.append((func, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self.records:
            held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            again = func(*args, **kwargs)
            for to, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(to, Tensor) and to.untyped_storage().data_ptr() not in held:
                    to.copy_(new)


def recording(run: Trainer, log: list[str]) -> Callable[[Callable[[], Any]], Any]:
    """Capture as CUDA does: nothing that the recorded work did remains."""

    def capture(work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        log.append("captured")
        before = {name: tensor.clone() for name, tensor in run.state().items()}
        recorder = Recorder()
        try:
            with recorder:
                done = work()
        finally:
            run.load(before, run.step_number)

        def replay() -> None:
            log.append("replayed")
            recorder.replay()

        return done, replay

    return capture


def refusing(work: Callable[[], Any]) -> Any:
    raise RuntimeError("no graphs here")


class ByEntries(TorchEntries):
    def entries_pay(self, dtype: torch.dtype, share: float) -> bool:
        return True


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "topk": ({}, {"lr_warm_up_steps": 5, "dead_threshold": 64}),
    "batchtopk": ({"act_fn": "batchtopk"}, {"clip_grad_norm": 0.5, "dead_threshold": 64}),
    "glu": ({"use_glu_encoder": True, "apply_b_dec_to_input": True}, {"gradient_accumulation_steps": 2}),
    "steered": ({"act_fn": "jumprelu"}, {"target_l0": 3.0}),
    "relu": ({"act_fn": "relu"}, {"sparsity_loss_type": "power", "l1_coefficient": 0.3, "l1_coefficient_warmup_steps": 20}),
    "steered coefficient": (
        {"act_fn": "relu"},
        {"sparsity_loss_type": "power", "l1_coefficient": 0.1, "target_l0": 4.0, "target_l0_mode": "coefficient"},
    ),
    "sparseadam": ({}, {"optimizer": "sparseadam", "decoder_constraint": "unit_norm"}),
    "schedule of k": ({}, {"initial_k": 8, "k_warmup_steps": 12}),
    "topk start": ({"act_fn": "jumprelu"}, {"target_l0": 3.0, "topk_start_steps": 12}),
    "half": ({}, {"amp_dtype": "bfloat16"}),
}


def batches() -> Iterator[TrainingBatch]:
    for i in range(STEPS):
        x = rows(32, seed=i)
        yield TrainingBatch(i, x, x)


def trained(fields: dict[str, Any], trainers: dict[str, Any], capture: Any, log: list[str]) -> Trainer:
    run = trainer(dictionary(**fields), STEPS, **trainers)
    run.guard.immediate = False  # as on a GPU
    run.capture(capture or recording(run, log))
    for batch in batches():
        run.step(batch, observe=batch.index % 10 == 0)
    run.guard.read()
    return run


BUDGETED = [case for case, (fields, _) in CASES.items() if fields.get("act_fn", "topk") in ("topk", "batchtopk")]


@pytest.mark.parametrize(("case", "by_entries"), [(case, False) for case in CASES] + [(case, True) for case in BUDGETED])
def test_replays_are_the_steps_themselves(case: str, by_entries: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ByEntries() if by_entries else TorchEntries()
    monkeypatch.setattr("pipeline.dictionaries.base.entry_kernels", lambda *_: kernels)
    log: list[str] = []
    replayed, eager = trained(*CASES[case], None, log), trained(*CASES[case], refusing, [])
    assert log.count("replayed") >= STEPS // 3
    assert same({k: v.clone() for k, v in replayed.state().items()}, eager.state())


def test_what_waits_goes_on_without_a_graph(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """AuxK asks for dead features; entries of thresholds for their number: neither is even tried."""
    monkeypatch.setattr("pipeline.dictionaries.base.entry_kernels", lambda *_: ByEntries())
    for fields, trainers in (
        ({}, {"auxk_coefficient": 0.1, "dead_threshold": 64}),
        ({"act_fn": "jumprelu"}, {"target_l0": 3.0}),
    ):
        log: list[str] = []
        run = trained(fields, trainers, None, log)
        assert log == []
        assert run.step_number == STEPS
    assert caplog.records == []


def test_a_refused_capture_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trained({}, {}, refusing, [])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no graphs here" in caplog.text


def test_another_kind_of_step_is_captured_anew() -> None:
    made: list[int] = []

    def capture(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        made.append(len(made))
        out = work()
        return out, lambda: None

    graph: StepGraph[str, Tensor] = StepGraph(lambda batch, _: batch.inputs.sum(), capture)
    small, large = (TrainingBatch(0, x, x) for x in (rows(4), rows(8)))
    found = [graph.run(batch, "a") is not None for batch in [small] * (WARM + 2) + [large] * (WARM + 1)]
    assert found == [False] * WARM + [True, True] + [False] * WARM + [True]
    assert made == [0, 1]
    assert graph.run(large, "b") is None
