"""Several dictionaries evaluated in one pass: each as it is alone, bit for bit, and what they share computed once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError, NumericsError
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.norms.hook_norm import as_hook_norm
from tests.evaluation.test_excluded import limited
from tests.evaluation.test_report import SAE, TRANSCODER, Case
from tests.evaluation.tiny import D_MODEL, HOOK, held_out
from tests.messages import saying

LATE = "blocks.2.hook_resid_post"
READS, WRITES = ([f"blocks.{layer}.{site}" for layer in (0, 1)] for site in ("ln2.hook_out", "hook_mlp_out"))
CLT = {"kind": "clt", "hook_points_in": READS, "hook_points_out": WRITES, "d_in": D_MODEL, "d_sae": 24}
CONFIGS = {
    "k5": SAE,
    "k9": {**SAE, "top_k": 9},
    "late": {**SAE, "hook_point_in": LATE, "d_sae": 96},
    "mlp": TRANSCODER,
    "layers": {**CLT, "act_fn": "topk", "top_k": 3},
}


def together(cases: dict[str, Case], model) -> Evaluator:
    """The evaluator of the dictionaries of some cases, which have the same tokens and the same principal directions."""
    raws = {name: RawDictionary(case.dictionary, case.norms) for name, case in cases.items()}
    principal = {hook: p for case in cases.values() for hook, p in case.principal.items()}
    return Evaluator(model, raws, principal, held_out(next(iter(cases.values())).tokens))


def check_equal(cases: dict[str, Case], model, rank: int | None = None) -> None:
    found = together(cases, model).evaluate_each(rank)
    assert list(found) == list(cases)
    for name, case in cases.items():
        alone = case.evaluate(rank=rank)
        assert found[name].metrics == alone.metrics, name
        assert list(found[name].metrics) == list(alone.metrics)
        assert torch.equal(found[name].density, alone.density)
        assert torch.equal(found[name].mean_when_active, alone.mean_when_active)
        assert found[name].histogram.counts == alone.histogram.counts
        assert found[name].shares == alone.shares


@pytest.mark.parametrize("rank", [None, 3])
def test_each_has_the_figures_that_it_has_alone(model, rank):
    """Of several hook points, kinds, widths and budgets; in the model's own precision."""
    check_equal({name: Case(model, config, seed) for seed, (name, config) in enumerate(CONFIGS.items())}, model, rank)


def test_the_rule_of_one_is_not_that_of_another(exact):
    """Two dictionaries at one hook point that call other tokens massive, of which one leaves them out."""
    every = Case(exact[0], SAE)
    some, massive = limited(exact, SAE, {HOOK: 0.9})
    few, fewer = limited(exact, SAE, {HOOK: 0.95}, rule=False)
    assert 0 < int(fewer.sum()) < int(massive.sum())
    for case in (every, some, few):
        case.dictionary.double()
    check_equal({"every": every, "some": some, "few": few}, exact[0])


class Counted:
    """What a model is asked for, by method and by what it replaces."""

    def __init__(self, model, monkeypatch) -> None:
        self.calls: Counter = Counter()
        activations, logits = model.activations, model.logits

        def counted(ids, hooks):
            self.calls["activations"] += 1
            return activations(ids, hooks)

        def spliced(ids, replace=None, **options):
            self.calls[tuple(replace or ())] += 1
            return logits(ids, replace, **options)

        monkeypatch.setattr(model, "activations", counted)
        monkeypatch.setattr(model, "logits", spliced)


def test_what_does_not_depend_on_a_dictionary_is_run_once_a_batch(model, monkeypatch):
    """Nine contexts in three batches. At HOOK: the clean run, zeros, the mean, two splices and two ranks of PCA."""
    cases = {name: Case(model, CONFIGS[name]) for name in ("k5", "k9", "late")}
    counted = Counted(model, monkeypatch)
    evaluator = together(cases, model)
    done: list[int] = []
    evaluator.progress = type("Progress", (), {"update": staticmethod(done.append)})()
    evaluator.evaluate_each()
    n_runs = sum(counted.calls.values())
    assert counted.calls == {"activations": 3, (HOOK,): 3 * (2 + 2 + 2), (LATE,): 3 * (1 + 2 + 1 + 1)}
    assert n_runs == 3 * evaluator.n_runs == 3 * 12
    assert sum(done) == evaluator.n_runs * cases["k5"].tokens.size


def test_pca_of_one_rank_is_run_once(model, monkeypatch):
    cases = {name: Case(model, CONFIGS[name]) for name in ("k5", "k9")}
    counted = Counted(model, monkeypatch)
    together(cases, model).evaluate_each(4)
    assert counted.calls == {"activations": 3, (HOOK,): 3 * (1 + 2 + 2 + 1)}


def test_features_of_one_are_not_kept_while_another_is_looked_at(model, monkeypatch):
    """At most those of one batch of one dictionary are alive when the next is encoded."""
    import weakref

    cases = {name: Case(model, CONFIGS[name]) for name in ("k5", "k9", "late")}
    alive: list[weakref.ref] = []
    most = 0
    original = RawDictionary.__call__

    def watched(self, *arguments):
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        found = original(self, *arguments)
        alive.append(weakref.ref(found.features))
        return found

    monkeypatch.setattr(RawDictionary, "__call__", watched)
    together(cases, model).evaluate_each()
    assert len(alive) >= 9
    assert most == 0


def test_a_fault_of_one_begins_with_its_name(model):
    cases = {name: Case(model, CONFIGS[name]) for name in ("k5", "k9")}
    with torch.no_grad():
        cases["k9"].dictionary.b_D[0] = torch.nan
    with pytest.raises(NumericsError, match=saying("sweep.k9:", HOOK, "contexts 0 to 3", "reconstruction", "[0, 0]")):
        together(cases, model).evaluate_each()
    narrow = RawDictionary(build_dictionary({**SAE, "d_in": 8}), {HOOK: as_hook_norm(3.0, 8)})
    with pytest.raises(DataError, match=saying("sweep.narrow:", HOOK, 16, 8)):
        Evaluator(model, {"narrow": narrow}, cases["k5"].principal, held_out(cases["k5"].tokens))
