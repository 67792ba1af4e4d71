"""A crosscoder over layers and checkpoints, against runs of the plain transformers models, each by itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.raw_space import RawDictionary
from tests.evaluation import naive
from tests.evaluation.test_report import _norms, vars_of
from tests.evaluation.tiny import D_MODEL, held_out, principal_of, tiny_tokens
from tests.messages import saying

EARLY, LATE, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "tuned:blocks.1.hook_resid_post"
LAYER_OF = {EARLY: 0, LATE: 1, OTHER: 1}
CONFIG = {"kind": "crosscoder", "d_in": D_MODEL, "d_sae": 64, "act_fn": "topk", "top_k": 6}


class Case:
    """A folded crosscoder over `hooks`, its models, and everything known of the activations."""

    def __init__(self, models: dict, modules: dict, hooks: tuple[str, ...]) -> None:
        self.models, self.modules, self.hooks = models, modules, hooks
        self.tokens = tiny_tokens()
        self.ids = torch.from_numpy(self.tokens.astype(np.int64))
        self.mask = self.ids != 0
        self.activations = {hook: self.run(hook, {})[1] for hook in hooks}
        norms = _norms(self.activations, self.mask)
        unfolded = build_dictionary({**CONFIG, "hook_points_in": list(hooks)}, seed=4)
        self.dictionary = unfolded.fold({hook: vars_of(norm) for hook, norm in norms.items()})
        self.principal = {hook: principal_of(x[self.mask] + 0.1) for hook, x in self.activations.items()}

    def run(self, key: str, change: dict[str, object]) -> tuple[Tensor, Tensor]:
        """Logits of the key's model with {key: x -> new x} at some hook points, and the activation at `key` itself."""
        module = self.modules[key.rpartition(":")[0]]
        seen: dict[str, Tensor] = {}
        handles = []
        for hook in {*change, key}:

            def act(_: nn.Module, args: object, output: object, hook: str = hook) -> object:
                x = output[0] if isinstance(output, tuple) else output
                seen[hook] = x
                new = change[hook](x) if hook in change else x  # type: ignore[operator]
                return (new, *output[1:]) if isinstance(output, tuple) else new

            handles.append(module.gpt_neox.layers[LAYER_OF[hook]].register_forward_hook(act))
        with torch.no_grad():
            logits = module(input_ids=self.ids, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return logits, seen[key]

    def reconstruct(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = torch.stack([inputs[hook] for hook in self.hooks], dim=-2)
        with torch.no_grad():
            x_hat = self.dictionary(x)
        return {hook: x_hat[..., p, :] for p, hook in enumerate(self.hooks)}

    def kept(self, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(self.mask[..., None], new, old)

    def ce(self, key: str, change: dict[str, object]) -> float:
        return naive.cross_entropy(self.run(key, change)[0].numpy(), self.tokens, self.mask.numpy())

    def constant(self, hook: str, vector: Tensor) -> object:
        return lambda x, v=vector: self.kept(v.to(x).expand_as(x), x)

    def evaluate(self, batch_contexts: int = 4) -> dict[str, float]:
        raw = RawDictionary(self.dictionary, {})
        models = self.models if len(self.models) > 1 else self.models[""]
        return Evaluator(models, raw, self.principal, held_out(self.tokens, batch_contexts)).evaluate().metrics


@pytest.fixture(scope="module")
def both(model, module, tuned, tuned_module):
    return {"": model, "tuned": tuned}, {"": module, "tuned": tuned_module}


@pytest.mark.parametrize("hooks", [(LATE, OTHER), (OTHER, LATE)])
def test_each_model_gets_its_own_reconstruction_in_its_own_run(both, hooks):
    """Features come from both models' activations; main metrics are the main model's, whatever the order."""
    case = Case(*both, hooks)
    got = case.evaluate()
    x_hats = case.reconstruct(case.activations)
    for key, suffix in ((LATE, ""), (OTHER, ".tuned")):
        splice = {key: lambda x, key=key: case.kept(x_hats[key], x)}
        original, spliced = case.ce(key, {}), case.ce(key, splice)
        mean = case.ce(key, {key: case.constant(key, case.principal[key].mean)})
        zero = case.ce(key, {key: case.constant(key, torch.zeros(D_MODEL))})
        wanted = {
            "ce_original": original,
            "ce_spliced": spliced,
            "delta_ce": spliced - original,
            "ce_mean": mean,
            "ce_zero": zero,
            "loss_recovered_mean": (mean - spliced) / (mean - original),
            "loss_recovered_zero": (zero - spliced) / (zero - original),
            "kl": naive.kl(case.run(key, {})[0].numpy(), case.run(key, splice)[0].numpy(), case.mask.numpy()),
        }
        for name, value in wanted.items():
            assert got[f"{name}{suffix}"] == pytest.approx(value, rel=2e-5, abs=1e-8), (name, key)
        assert got[f"delta_ce.{key}"] == got[f"delta_ce{suffix}"]
        assert got[f"ce_spliced.{key}"] == got[f"ce_spliced{suffix}"]
        assert got[f"kl.{key}"] == got[f"kl{suffix}"]
        kept = case.mask
        wanted_here = naive.reconstruction(case.activations[key][kept].numpy(), x_hats[key][kept].numpy())
        for name, value in wanted_here.items():
            assert got[f"{name}.{key}"] == pytest.approx(value, rel=1e-6), name
    assert got["ce_original"] != got["ce_original.tuned"]
    assert got["pca_delta_ce.tuned"] != got["pca_delta_ce"]
    assert not any(name.endswith((f".tuned.{OTHER}", f"{LATE}.tuned")) for name in got)


def test_layers_and_checkpoints_together(both):
    """Two layers of the main model and one of the other: the later layer reads what the first splice has made of it."""
    case = Case(*both, (EARLY, LATE, OTHER))
    got = case.evaluate()
    acts, known = case.activations, case.reconstruct(case.activations)
    seen: dict[str, Tensor] = {}

    def early(x: Tensor) -> Tensor:
        seen[EARLY] = x
        return case.kept(known[EARLY], x)

    def late(x: Tensor) -> Tensor:  # the early input before its replacement, the late one as it now is, the other model's own
        return case.kept(case.reconstruct({EARLY: seen[EARLY], LATE: x, OTHER: acts[OTHER]})[LATE], x)

    assert got["ce_spliced"] == pytest.approx(case.ce(LATE, {EARLY: early, LATE: late}), rel=1e-5)
    for key in case.hooks:  # each alone: nothing before it is changed
        alone = case.ce(key, {key: lambda x, key=key: case.kept(known[key], x)})
        assert got[f"ce_spliced.{key}"] == pytest.approx(alone, rel=1e-5), key
        suffix = ".tuned" if key == OTHER else ""
        assert got[f"delta_ce.{key}"] == pytest.approx(alone - case.ce(key, {}), rel=1e-4, abs=1e-6)
        assert got[f"ce_original{suffix}"] == pytest.approx(case.ce(key, {}), rel=1e-5)
    ablated = {key: case.constant(key, case.principal[key].mean) for key in (EARLY, LATE)}
    assert got["ce_mean"] == pytest.approx(case.ce(LATE, ablated), rel=1e-5)


def test_several_models_do_not_depend_on_the_batches(exact, exact_tuned):
    """In float64: on some processors products of other heights differ in their last bits."""
    models, modules = ({"": main, "tuned": tuned} for main, tuned in zip(exact, exact_tuned, strict=True))
    case = Case(models, modules, (LATE, OTHER))
    case.dictionary.double()
    few, many = case.evaluate(2), case.evaluate(9)
    for name in few:
        assert many[name] == pytest.approx(few[name], rel=1e-6, abs=1e-9), name


def test_the_number_of_runs_is_the_number_that_is_made(both, monkeypatch):
    main = {"": both[0][""]}
    for hooks, models, n_runs in (((EARLY, LATE), main, 14), ((LATE, OTHER), both[0], 12), ((EARLY, LATE, OTHER), both[0], 20)):
        case = Case(models, both[1], hooks)
        counted = []
        progress = SimpleNamespace(update=counted.append)
        raw = RawDictionary(case.dictionary, {})
        evaluator = Evaluator(models, raw, case.principal, held_out(case.tokens), progress)
        evaluator.evaluate()
        assert evaluator.n_runs == n_runs
        assert sum(counted) == n_runs * case.tokens.size


def test_a_hook_point_that_the_other_model_lacks_is_named(both):
    case = Case(*both, (LATE, OTHER))
    config = {**CONFIG, "d_in": 8, "hook_points_in": [LATE, OTHER]}
    with pytest.raises(DataError, match=saying(16, 8)):
        Evaluator(both[0], RawDictionary(build_dictionary(config).fold(2.0), {}), case.principal, held_out(case.tokens))
    missing = {**CONFIG, "hook_points_in": [LATE, "tuned:blocks.9.hook_resid_post"]}
    principal = {**case.principal, "tuned:blocks.9.hook_resid_post": case.principal[OTHER]}
    with pytest.raises(
        DataError, match=saying("blocks.9.hook_resid_post", "layer 9", "3 layers", "'blocks.2.hook_resid_post'")
    ):
        Evaluator(both[0], RawDictionary(build_dictionary(missing).fold(2.0), {}), principal, held_out(case.tokens))
