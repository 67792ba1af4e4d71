"""Which kernels a run uses: refusals, the line that says it, and the change from dense products to entries during a run."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.errors import ParamsError
from pipeline.kernels.cpu import CpuEntries
from pipeline.kernels.dispatch import entry_kernels, triton_fault
from pipeline.kernels.reference import TorchEntries
from pipeline.training import active_share
from pipeline.training.fit import fit
from pipeline.training.kernels import check_device, way, ways_in_words
from pipeline.training.objective import LossReport, compute_loss
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.messages import saying
from tests.training.cases import dictionary, rows, same, trainer, weights


def test_the_cpu_takes_entries_up_to_the_measured_crossover() -> None:
    kernels = entry_kernels("cpu")
    assert isinstance(kernels, CpuEntries)
    assert kernels.entries_pay(torch.float32, 24 / 2048)
    assert not kernels.entries_pay(torch.float32, 1024 / 2048)
    assert not kernels.entries_pay(torch.bfloat16, 24 / 2048)
    assert isinstance(entry_kernels("cuda", False), TorchEntries)
    assert isinstance(entry_kernels("cpu", True, dtype=torch.float64), CpuEntries)


def test_triton_without_a_gpu_is_refused_with_what_helps() -> None:
    triton_fault.cache_clear()
    with pytest.raises(ParamsError, match=saying("dictionary.use_triton_kernel:", "TRITON_INTERPRET=1", "auto or false")):
        fit(rows(64), dictionary={"d_sae": 16, "top_k": 2, "use_triton_kernel": True}, trainer={}, batch_size=32, device="cpu")


def test_an_old_gpu_is_refused() -> None:
    triton_fault.cache_clear()
    with mock.patch("torch.cuda.get_device_capability", return_value=(7, 0)):
        fault = triton_fault("cuda")
    triton_fault.cache_clear()
    assert fault is not None
    assert "8.0" in fault
    assert "7.0" in fault


def test_bfloat16_on_a_gpu_without_it_is_refused() -> None:
    made = dictionary()
    with (
        mock.patch.object(type(made), "parameters", side_effect=lambda: iter([mock.Mock(device=torch.device("cuda"))])),
        mock.patch("torch.cuda.is_bf16_supported", return_value=False),
        mock.patch("torch.cuda.get_device_name", return_value="Old"),
        pytest.raises(ParamsError, match=saying("trainer.amp_dtype:", "Old", "float16")),
    ):
        check_device(made, "bfloat16")


def test_the_way_is_said() -> None:
    dense, entries, open_ended = (
        way(dictionary(top_k=3), "float32", 3),
        way(dictionary(top_k=1), "float32", 1),
        way(dictionary(act_fn="jumprelu"), "float32", 0),
    )
    assert ways_in_words({"": dense}) == [f"{CpuEntries.rule}; 0.125 are active here: dense products"]  # 3 of 24
    assert ways_in_words({"": open_ended}) == [CpuEntries.rule]
    (line,) = ways_in_words({"k3": dense, "k1": entries, "again": entries, "jump": open_ended})
    told = "0.125 (k3) are active here: dense products; 0.0417 (k1), 0.0417 (again) are active here: chosen entries"
    assert line == f"{CpuEntries.rule}; {told}"
    assert len(ways_in_words({"a": dense, "b": dense._replace(rule="otherwise")})) == 2


def batch(index: int) -> TrainingBatch:
    x = rows(32, seed=index)
    return TrainingBatch(index, x, x)


class Waiting(TorchEntries):
    """Kernels that would wait for a device, and pay up to half of the features."""

    def entries_pay(self, dtype: torch.dtype, share: float) -> bool:
        return share <= 0.5


def steered(total_steps: int) -> Trainer:
    """JumpReLU on its way from most of the features to three a token."""
    made = dictionary(act_fn="jumprelu")
    with torch.no_grad():
        made.get_parameter("b_E").fill_(1.5)
    return trainer(made, total_steps, target_l0=3.0, target_l0_gain=0.5, revive_dead_features=False)


def test_a_run_that_becomes_sparse_goes_over_to_entries_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_share, "EVERY", 4)
    by_entries: list[bool] = []

    def watched(*arguments: Any, **named: Any) -> LossReport:
        report = compute_loss(*arguments, **named)
        by_entries.append(report.codes.entries is not None)
        return report

    monkeypatch.setattr("pipeline.training.step.compute_loss", watched)
    monkeypatch.setattr("pipeline.dictionaries.base.entry_kernels", lambda *_: Waiting())
    run = steered(40)
    shares = []
    for i in range(40):
        if i == 32:
            with torch.no_grad():
                run.dictionary.get_parameter("b_E").add_(20.0)
        run.step(batch(i))
        shares.append(run.share.known)
    first = next(i for i, share in enumerate(shares) if share is not None and share <= 0.5)
    assert 0 < first < 32
    assert first % 4 == 0
    assert by_entries[: first + 1] == [False] * (first + 1)
    assert all(by_entries[first + 1 : 32])
    assert shares[32] == 1.0
    assert not any(by_entries[32:37])  # in the very step, whose share was not known, and until the next measure


def test_a_resumed_run_takes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_share, "EVERY", 4)
    monkeypatch.setattr("pipeline.dictionaries.base.entry_kernels", lambda *_: Waiting())
    whole, half = steered(40), steered(40)
    for i in range(40):
        whole.step(batch(i))
    for i in range(18):
        half.step(batch(i))
    state = {name: tensor.clone() for name, tensor in half.state().items()}
    assert "active/share" in state
    again = steered(40)
    again.load(state, 18)
    for i in range(18, 40):
        again.step(batch(i))
    assert same(weights(whole.dictionary), weights(again.dictionary))


def test_memory_that_runs_out_is_told_with_what_needs_it() -> None:
    with (
        mock.patch.object(Trainer, "step", side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        pytest.raises(
            ParamsError, match=saying("trainer.gradient_accumulation_steps:", "activations.batch_size 32", "the weights")
        ),
    ):
        fit(rows(64), dictionary={"d_sae": 16, "top_k": 2}, trainer={}, batch_size=32, device="cpu")


def test_another_error_stays_what_it_is() -> None:
    with mock.patch.object(Trainer, "step", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
        fit(rows(64), dictionary={"d_sae": 16, "top_k": 2}, trainer={}, batch_size=32, device="cpu")
