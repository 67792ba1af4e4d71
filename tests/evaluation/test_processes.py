"""An evaluation whose batches are dealt to processes has every figure of one process, to the last bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dictionaries.sharding import deal_
from pipeline.errors import DataError, NumericsError
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.full_set import FullSet
from pipeline.evaluation.measured import Evaluation
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.replaced_sets import with_replacement
from pipeline.evaluation.replacement import ReplacementModel
from pipeline.lm.huggingface import HuggingFaceModel
from pipeline.lm.loading import load_language_model
from pipeline.lm.source import resolve_model
from pipeline.progress import Progress
from tests.evaluation.conftest import _plain
from tests.evaluation.test_excluded import limited
from tests.evaluation.test_replacement import WRITES, T, clt, transcoders
from tests.evaluation.test_report import SAE, Case
from tests.evaluation.test_several_dictionaries import CLT
from tests.evaluation.tiny import HOOK, held_out, principal_of, tiny_tokens
from tests.threads import in_threads
from tests.training.threads import ALONE, Place, in_mesh

LAYERS = {**CLT, "act_fn": "topk", "top_k": 3}
COUNTED = ("l0_", "dead_", "dense_", "features_", "evaluated_", "excluded_", "massive_", "pca_rank")
MESHES = ((1, 2), (2, 2), (2, 1), (1, 4))


class Quiet:
    """A stream that keeps what is written."""

    def __init__(self) -> None:
        self.said = ""

    def write(self, text: str) -> None:
        self.said += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("act_fn", ["topk", "batchtopk", "jumprelu"])
def test_features_dealt_to_processes(tiny_path: Path, exact: Any, act_fn: str) -> None:
    """In float64, up to the rounding of sums that are made in parts: of features of a token, of products of wide matrices.

    Of several hook points and kinds, massive tokens left out or not; what is counted is equal.
    """
    cases = {
        "sae": Case(exact[0], {**SAE, "act_fn": act_fn, "top_k": 3}, 1),
        "layers": Case(exact[0], {**CLT, "act_fn": act_fn, "top_k": 3}, 2),
        "few": limited(exact, {**SAE, "act_fn": act_fn, "top_k": 3}, {HOOK: 0.9})[0],
    }
    for case in cases.values():
        case.dictionary.double()
    principal = {hook: p for case in cases.values() for hook, p in case.principal.items()}

    def work(place: Place) -> dict[str, Evaluation]:
        own = HuggingFaceModel(resolve_model(tiny_path), _plain(tiny_path).double())
        raws = {}
        for name, case in cases.items():
            dictionary = copy.deepcopy(case.dictionary)
            deal_(dictionary, place.features)
            raws[name] = RawDictionary(dictionary, case.norms)
        held = held_out(cases["sae"].tokens, 2)
        return Evaluator(own, raws, principal, held, processes=place.rows).evaluate_each()

    wanted = work(ALONE)
    assert wanted["few"].metrics["excluded_tokens"] > 0
    assert wanted["layers"].shares
    for data, features in MESHES:
        found, *others = in_mesh(data, features, work)
        assert others == [{}] * (data * features - 1)
        for name, evaluation in found.items():
            theirs = wanted[name]
            assert list(evaluation.metrics) == list(theirs.metrics)
            for key, value in evaluation.metrics.items():
                if key.startswith(COUNTED):
                    assert value == theirs.metrics[key], key
                assert value == pytest.approx(theirs.metrics[key], rel=1e-9, abs=1e-12), key
            assert torch.equal(evaluation.density, theirs.density)
            torch.testing.assert_close(evaluation.mean_when_active, theirs.mean_when_active, rtol=1e-10, atol=1e-12)
            assert (evaluation.histogram, evaluation.shares) == (theirs.histogram, theirs.shares)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_every_figure_is_that_of_one_process(tiny_path: Path, exact: Any, size: int) -> None:
    """Dictionaries of several hook points and kinds, one of which leaves massive tokens out; 5 batches."""
    model = exact[0]
    cases = {"sae": Case(model, SAE, 1), "layers": Case(model, LAYERS, 2), "few": limited(exact, SAE, {HOOK: 0.9})[0]}
    for case in cases.values():
        case.dictionary.double()
    principal = {hook: p for case in cases.values() for hook, p in case.principal.items()}

    def work(processes: Any) -> tuple[dict[str, Any], Progress]:
        own = HuggingFaceModel(resolve_model(tiny_path), _plain(tiny_path).double())  # hooks of one run are not another's
        raws = {name: RawDictionary(case.dictionary, case.norms) for name, case in cases.items()}
        evaluator = Evaluator(own, raws, principal, held_out(cases["sae"].tokens, 2), processes=processes)
        evaluator.progress = Progress("evaluate", evaluator.n_runs * cases["sae"].tokens.size, stream=Quiet())  # type: ignore[arg-type]
        return evaluator.evaluate_each(), evaluator.progress

    (wanted, _), *_ = in_threads(1, work)
    found = in_threads(size, work)
    assert [len(evaluations) for evaluations, _ in found] == [3] + [0] * (size - 1)
    assert all(progress.done == progress.total for _, progress in found)
    for name, evaluation in found[0][0].items():
        assert evaluation.metrics == wanted[name].metrics
        assert list(evaluation.metrics) == list(wanted[name].metrics)
        assert torch.equal(evaluation.density, wanted[name].density)
        assert torch.equal(evaluation.mean_when_active, wanted[name].mean_when_active)
        assert evaluation.histogram == wanted[name].histogram
    assert wanted["few"].metrics["excluded_tokens"] > 0
    assert wanted["sae"].metrics["fvu_low"] < wanted["sae"].metrics["fvu"]


def test_a_fault_is_told_by_all_as_by_one(tiny_path: Path, model: Any) -> None:
    """A label that is not finite, in the second batch and in the third."""
    case, said = Case(model, SAE, 1), []
    tokens = case.tokens.copy()
    tokens[5:] = 17

    def work(processes: Any) -> str:
        own = load_language_model(str(tiny_path), device="cpu")
        activations = own.activations

        def broken(ids: torch.Tensor, hooks: Any) -> dict[str, torch.Tensor]:
            found = activations(ids, hooks)
            found[HOOK][(ids == 17) & (found[HOOK][..., 0] == found[HOOK][..., 0])] = float("nan")
            return found

        own.activations = broken  # type: ignore[method-assign]
        with pytest.raises(NumericsError) as caught:
            Evaluator(
                own, RawDictionary(case.dictionary, {}), case.principal, held_out(tokens, 3), processes=processes
            ).evaluate()
        return str(caught.value)

    for size in (1, 2, 3):
        said += in_threads(size, work)
    assert len(set(said)) == 1
    assert HOOK in said[0]


@pytest.mark.parametrize("kind", ["clt", "transcoders"])
def test_the_replacement_model_has_the_figures_of_one_process(tiny_path: Path, model: Any, kind: str) -> None:
    dictionaries = [clt()] if kind == "clt" else transcoders(act_fn="topk", top_k=3)
    tokens = tiny_tokens(3)
    acts = model.activations(torch.from_numpy(tokens.astype(np.int64)), list(WRITES))
    principal = {hook: principal_of(acts[hook][torch.from_numpy(tokens) != 0]) for hook in WRITES}

    def work(processes: Any) -> dict[str, float]:
        own = load_language_model(str(tiny_path), device="cpu")
        full = FullSet([RawDictionary(each.float(), {}) for each in dictionaries], own)
        return ReplacementModel(full, principal, T, processes=processes).metrics(held_out(tokens, 1))

    (wanted,) = in_threads(1, work)
    assert wanted["replacement_contexts"] == 3
    assert in_threads(2, work) == [wanted] * 2


def test_what_one_cannot_replace_is_left_out_by_all(tiny_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault comes in the second batch: the processes go on to the next set together."""
    case, tokens = Case(model, SAE, 1), tiny_tokens(3)
    evaluation = case.evaluate()

    class Replacing(ReplacementModel):
        def __init__(self, full: Any, principal: Any, graph_tokens: int, counted: Any, processes: Any) -> None:
            self.full, self.processes, self._counted = full, processes, counted

        def _runs(self, batch: Any) -> None:
            if self.full == "a" and int(batch.contexts[0]) == 1:
                raise DataError("it cannot be frozen")
            self._add("replacement_kl", torch.ones(2))

        def _graph(self, batch: Any, row: int, copies: int) -> None:
            pass

    monkeypatch.setattr("pipeline.evaluation.replaced_sets.ReplacementModel", Replacing)
    monkeypatch.setattr("pipeline.evaluation.replaced_sets.FullSet", lambda raws, model: raws[0])

    def work(processes: Any) -> dict[str, Any]:
        found = {"one": evaluation, "two": evaluation} if processes.rank == 0 else {}
        sets: Any = [{"one": "a"}, {"two": "b"}]
        return with_replacement(found, sets, {"": model}, {}, held_out(tokens, 1), 4, processes)

    first, second = in_threads(2, work)
    assert second == {}
    assert "it cannot be frozen" in first["one"].said
    assert first["two"].metrics["replacement_kl"] == 1.0
    assert first["two"].metrics["replacement_predictions"] == 6.0
