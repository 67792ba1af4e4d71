"""The whole evaluation against runs of the plain transformers model, and its meaning."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError, NumericsError
from pipeline.evaluation.baselines import PrincipalDirections
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.norms.hook_norm import as_hook_norm
from pipeline.processes import ONE_PROCESS
from tests.evaluation import naive
from tests.evaluation.tiny import D_MODEL, HOOK, MLP_IN, MLP_OUT, held_out, hooked_run, principal_of, tiny_tokens
from tests.messages import saying

SAE = {"kind": "sae", "hook_point_in": HOOK, "d_in": D_MODEL, "d_sae": 48, "act_fn": "topk", "top_k": 5}
TRANSCODER = {**SAE, "kind": "transcoder", "hook_point_in": MLP_IN, "hook_point_out": MLP_OUT, "skip": True}


def _norms(activations: dict[str, Tensor], mask: Tensor) -> dict:
    norms = {}
    for hook, x in activations.items():
        length = x[mask].double().norm(dim=-1)
        entry = {"mean_norm": float(length.mean()), "mean_square": float(length.square().mean()), "d": x.shape[-1]}
        norms[hook] = as_hook_norm(entry, x.shape[-1])
    return norms


class Case:
    """A dictionary with a language model, tokens, norms and principal directions."""

    def __init__(self, model, config: dict, seed: int = 3) -> None:
        self.model, self.tokens = model, tiny_tokens()
        self.ids = torch.from_numpy(self.tokens.astype(np.int64))
        self.mask = self.ids != 0
        self.unfolded = build_dictionary(config, seed=seed)
        self.hooks = tuple(dict.fromkeys((*self.unfolded.hooks_in, *self.unfolded.hooks_out)))
        self.activations = model.activations(self.ids, self.hooks)
        self.norms = _norms(self.activations, self.mask)
        self.dictionary = self.unfolded.fold({hook: vars_of(norm) for hook, norm in self.norms.items()})
        self.principal = {hook: principal_of(self.activations[hook][self.mask] + 0.1) for hook in self.hooks}

    def evaluate(self, dictionary=None, *, rank: int | None = None, batch_contexts: int = 4):
        raw = RawDictionary(dictionary if dictionary is not None else self.dictionary, self.norms)
        return Evaluator(self.model, raw, self.principal, held_out(self.tokens, batch_contexts)).evaluate(rank)


def vars_of(norm) -> dict:
    return {"mean_norm": norm.mean_norm, "mean_square": norm.mean_square, "d": norm.d}


def _assert_equal(got: dict, want: dict, rel: float = 1e-6) -> None:
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=rel, abs=1e-9), name


def _naive_runs(case: Case, module: nn.Module, where: nn.Module, x_hat: Tensor, rank: int) -> dict[str, float]:
    ids, mask = case.ids, case.mask
    (hook,) = case.dictionary.hooks_out
    principal = case.principal[hook]
    v = principal.directions[:rank]
    logits = {
        "original": hooked_run(module, ids, where, lambda x: x),
        "spliced": hooked_run(module, ids, where, lambda x: torch.where(mask[..., None], x_hat, x)),
        "zero": hooked_run(module, ids, where, lambda x: torch.where(mask[..., None], torch.zeros_like(x), x)),
        "mean": hooked_run(module, ids, where, lambda x: torch.where(mask[..., None], principal.mean.to(x.dtype), x)),
        "pca": hooked_run(
            module,
            ids,
            where,
            lambda x: torch.where(mask[..., None], (principal.mean + (x.double() - principal.mean) @ v.T @ v).to(x.dtype), x),
        ),
    }
    ce = {name: naive.cross_entropy(run.numpy(), case.tokens, mask.numpy()) for name, run in logits.items()}
    return {
        **{f"ce_{name}": ce[name] for name in ("original", "spliced", "zero", "mean")},
        "delta_ce": ce["spliced"] - ce["original"],
        "loss_recovered_zero": (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["original"]),
        "loss_recovered_mean": (ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["original"]),
        "kl": naive.kl(logits["original"].numpy(), logits["spliced"].numpy(), mask.numpy()),
        "kl_zero": naive.kl(logits["original"].numpy(), logits["zero"].numpy(), mask.numpy()),
        "pca_delta_ce": ce["pca"] - ce["original"],
    }


@pytest.mark.parametrize("config", [SAE, TRANSCODER], ids=["sae", "transcoder"])
def test_every_metric_equals_the_naive_one(exact, config):
    model, module = exact
    case = Case(model, config)
    case.dictionary.double()
    got = case.evaluate().metrics
    (hook_in,), (hook_out,) = case.dictionary.hooks_in, case.dictionary.hooks_out
    x, label = case.activations[hook_in], case.activations[hook_out]
    with torch.no_grad():
        codes, x_hat = case.dictionary.run(x, case.mask)
    kept, rank = case.mask, round(naive.sparsity(codes.f[case.mask].numpy())["l0_mean"])
    _assert_equal(got, naive.reconstruction(label[kept].numpy(), x_hat[kept].numpy()))
    _assert_equal(got, naive.sparsity(codes.f[kept].numpy()))
    layer = module.gpt_neox.layers[1]
    runs = _naive_runs(case, module, layer if config is SAE else layer.mlp, x_hat, rank)
    _assert_equal(got, runs)
    divergences, losses = (runs["kl"], runs["kl_zero"]), (runs["ce_original"], runs["ce_spliced"], runs["ce_zero"])
    others = naive.saebench(label[kept].numpy(), x_hat[kept].numpy(), codes.f[kept].numpy(), divergences, losses)
    W_E, W_D = (case.dictionary.get_parameter(name).detach().numpy() for name in ("W_E", "W_D"))
    others["saebench/average_max_decoder_cosine_sim"] = naive.mean_largest_cosine(W_D)
    others["saebench/average_max_encoder_cosine_sim"] = naive.mean_largest_cosine(W_E.T)
    _assert_equal(got, others)
    assert {name for name in got if name.startswith("saebench/")} == others.keys()
    y, principal = label[kept].double(), case.principal[hook_out]
    v = principal.directions[:rank]
    pca = principal.mean + (y - principal.mean) @ v.T @ v
    assert got["pca_fvu"] == pytest.approx(float((y - pca).square().sum() / (y - y.mean(0)).square().sum()), rel=1e-6)
    assert got["pca_rank"] == rank
    assert got["evaluated_tokens"] == int(kept.sum())
    assert got["predicted_tokens"] == int(kept[:, 1:].sum())


def test_results_do_not_depend_on_the_batches(exact):
    """In float64: on some processors products of other heights differ in their last bits."""
    case = Case(exact[0], SAE)
    case.dictionary.double()
    _assert_equal(case.evaluate(batch_contexts=2).metrics, case.evaluate(batch_contexts=9).metrics)


def test_what_the_first_pass_finds_is_found_once_while_there_is_room(model, monkeypatch):
    case, calls = Case(model, SAE), []
    found = model.activations
    monkeypatch.setattr(model, "activations", lambda *arguments: calls.append(1) or found(*arguments))
    kept = case.evaluate(batch_contexts=4).metrics
    assert len(calls) == 3  # batches of 9 contexts
    monkeypatch.setattr("pipeline.evaluation.evaluator.KEPT_BYTES", 0)
    assert case.evaluate(batch_contexts=4).metrics == kept
    assert len(calls) == 3 + 3 * 3


class _TrueActivation(nn.Module):
    """Gives back the label that it is shown, whatever it reads: a perfect dictionary."""

    def __init__(self, case: Case, hook: str) -> None:
        super().__init__()
        self.case, self.inner, self.config = case, case.dictionary, case.dictionary.config
        self.hooks_in = self.hooks_out = (hook,)
        self.feature_shape, self.feature_group = self.inner.feature_shape, self.inner.feature_group

    def run(self, x: Tensor, mask: Tensor | None = None) -> tuple[object, Tensor]:
        return self.inner.codes(x, mask), x

    def decode_linear(self, f: Tensor) -> Tensor:
        return self.inner.decode_linear(f)

    def decoder_norms(self) -> Tensor:
        return self.inner.decoder_norms()

    def thresholds(self) -> None:
        return None

    def parts(self) -> list[object]:
        return []


@pytest.mark.parametrize(
    "hook", [HOOK, "blocks.1.hook_mlp_out", "blocks.2.hook_attn_out", "blocks.0.hook_resid_pre", "blocks.1.ln2.hook_normalized"]
)
def test_splicing_the_true_activation_costs_exactly_nothing(model, hook):
    case = Case(model, {**SAE, "hook_point_in": hook})
    got = case.evaluate(_TrueActivation(case, hook)).metrics
    assert got["delta_ce"] == 0.0
    assert got["kl"] == 0.0
    assert got["ce_spliced"] == got["ce_original"]
    assert got["loss_recovered_zero"] == got["loss_recovered_mean"] == 1.0
    assert got["fvu"] == 0.0


def test_masked_positions_keep_the_original(exact):
    """A context of special tokens only is not touched by any intervention and counts nowhere."""
    case = Case(exact[0], SAE)
    case.dictionary.double()
    before = case.evaluate().metrics
    case.tokens = np.concatenate([case.tokens, np.zeros((1, case.tokens.shape[1]), dtype=np.int32)])
    after = case.evaluate().metrics
    before.pop("evaluated_contexts")
    _assert_equal(after, before, rel=1e-9)


def test_better_reconstructions_recover_more(model):
    case = Case(model, SAE)
    worse = case.evaluate().metrics
    broad = Case(model, {**SAE, "act_fn": "relu"})
    with torch.no_grad():  # ReLU of (x, -x) with decoder (I, -I), rest dead: exact up to rounding
        eye = torch.eye(D_MODEL)
        for name, value in {"W_E": torch.cat([eye, -eye, 0 * eye], 1), "W_D": torch.cat([eye, -eye, eye], 0)}.items():
            broad.dictionary.get_parameter(name).copy_(value)
        broad.dictionary.b_E.zero_()
        broad.dictionary.b_E[2 * D_MODEL :] = -1.0
    better = broad.evaluate().metrics
    assert better["fvu"] < 1e-12 < worse["fvu"]
    assert abs(better["delta_ce"]) < 1e-5
    assert better["dead_fraction"] == pytest.approx(1 / 3)
    assert better["loss_recovered_zero"] == pytest.approx(1.0, abs=1e-4)
    assert better["loss_recovered_zero"] > worse["loss_recovered_zero"]
    assert better["kl"] < worse["kl"]


@pytest.mark.parametrize("config", [SAE, TRANSCODER, {**SAE, "norm_activation": "dataset-rms"}])
def test_kept_norms_equal_folded_ones(model, config):
    """The same dictionary with its norm at run time and folded into its weights."""
    case = Case(model, config)
    kept, folded = case.evaluate(case.unfolded).metrics, case.evaluate().metrics
    for name in folded:
        if not name.startswith(("decoder_norm", "mean_activation", "l1_mean", "saebench/l1")):
            assert kept[name] == pytest.approx(folded[name], rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize("norm", ["token-wise", "batch-wise"])
def test_norms_that_cannot_be_folded_are_taken_at_run_time(model, norm):
    case = Case(model, SAE)
    dictionary = build_dictionary({**SAE, "norm_activation": norm}, seed=3)
    got = case.evaluate(dictionary, batch_contexts=9).metrics
    x = case.activations[HOOK]
    lengths = x.norm(dim=-1, keepdim=True)
    factor = D_MODEL**0.5 / (lengths if norm == "token-wise" else lengths[case.mask].mean())
    with torch.no_grad():
        x_hat = dictionary.run(x * factor, case.mask)[1] / factor
    kept = case.mask
    _assert_equal(got, naive.reconstruction(x[kept].numpy(), x_hat[kept].numpy()), rel=1e-5)


class _TwoLayers(nn.Module):
    """Reads and writes two hook points, [N, 2, D]: x_hat_0 = x_0 A, x_hat_1 = x_0 B + x_1 C, by way of all-positive codes."""

    hooks_in = hooks_out = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    feature_shape, feature_group = (2, D_MODEL), ONE_PROCESS

    def __init__(self, case: Case) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(9)
        self.config = case.dictionary.config
        self.A, self.B, self.C = (nn.Parameter(0.3 * torch.randn(D_MODEL, D_MODEL, generator=rng)) for _ in range(3))

    def layers(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        return x0 @ self.A, x0 @ self.B + x1 @ self.C

    def run(self, x: Tensor, mask: Tensor | None = None) -> tuple[object, Tensor]:
        assert x.ndim == 3
        assert mask is None or mask.shape == x.shape[:1]
        codes = SimpleNamespace(f=x.relu())
        return codes, torch.stack(self.layers(x[:, 0], x[:, 1]), dim=1)

    def decode_linear(self, f: Tensor) -> Tensor:
        return torch.stack(self.layers(f[:, 0], f[:, 1]), dim=1)

    def decoder_norms(self) -> Tensor:
        return torch.ones(2, D_MODEL)

    def written_rows(self, hook: int) -> Tensor:
        return torch.stack([self.A, torch.zeros_like(self.A)] if hook == 0 else [self.B, self.C])

    def thresholds(self) -> None:
        return None

    def parts(self) -> list[object]:
        return []


def _alone(dictionary, activations, keep, index):
    """A hook that replaces one layer's output by its reconstruction from the unspliced run."""

    def hook(_, args, output):
        x = output[0] if isinstance(output, tuple) else output
        new = torch.where(keep, dictionary.layers(*activations.values())[index], x)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def test_inputs_are_those_of_the_spliced_run_before_replacement(model, module):
    """The second layer's input already carries the first one's splice, and is not itself spliced."""
    case = Case(model, SAE)
    dictionary = _TwoLayers(case)
    activations = model.activations(case.ids, dictionary.hooks_out)
    case.principal = {hook: principal_of(x[case.mask] + 0.1) for hook, x in activations.items()}
    got = case.evaluate(dictionary).metrics
    layers, keep, seen = module.gpt_neox.layers, case.mask[..., None], []

    def splice(index: int):
        def hook(_, args, output):
            x = output[0] if isinstance(output, tuple) else output
            seen.append(x)
            new = torch.where(keep, dictionary.layers(seen[0], seen[-1])[index], x)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    handles = [layers[index].register_forward_hook(splice(index)) for index in (0, 1)]
    with torch.no_grad():
        spliced = module(input_ids=case.ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    want = naive.cross_entropy(spliced.numpy(), case.tokens, case.mask.numpy())
    assert got["ce_spliced"] == pytest.approx(want, rel=1e-5)
    for index, name in enumerate(dictionary.hooks_out):
        alone = layers[index].register_forward_hook(_alone(dictionary, activations, keep, index))
        with torch.no_grad():
            logits = module(input_ids=case.ids, use_cache=False).logits
        alone.remove()
        want = naive.cross_entropy(logits.numpy(), case.tokens, case.mask.numpy())
        assert got[f"ce_spliced.{name}"] == pytest.approx(want, rel=1e-5)
        assert got[f"delta_ce.{name}"] == pytest.approx(want - got["ce_original"], abs=1e-5)
        own = model.logits(case.ids).numpy()
        assert got[f"kl.{name}"] == pytest.approx(naive.kl(own, logits.numpy(), case.mask.numpy()), rel=1e-4)
    x0, x1 = (x[case.mask] for x in activations.values())
    with torch.no_grad():
        x_hats = dictionary.layers(x0, x1)
    for hook, x, x_hat in zip(dictionary.hooks_out, (x0, x1), x_hats, strict=True):
        assert got[f"fvu.{hook}"] == pytest.approx(naive.reconstruction(x.numpy(), x_hat.numpy())["fvu"], rel=1e-6)
        assert 0 < got[f"pca_fvu.{hook}"] < 1


def test_widths_that_do_not_fit_are_refused(model):
    case = Case(model, SAE)
    raw = RawDictionary(build_dictionary({**SAE, "d_in": 8}), {HOOK: as_hook_norm(3.0, 8)})
    with pytest.raises(DataError, match=saying(HOOK, 16, 8)):
        Evaluator(model, raw, case.principal, held_out(case.tokens))


def test_an_unfolded_dictionary_needs_norms(model):
    with pytest.raises(DataError, match=saying("norms:", "unknown", f"'{HOOK}'", "`dvc repro -s -f norm`")):
        RawDictionary(build_dictionary(SAE), {})


def test_a_non_finite_reconstruction_is_named(model):
    case = Case(model, SAE)
    with torch.no_grad():
        case.dictionary.b_D[0] = torch.nan
    with pytest.raises(NumericsError, match=saying(HOOK, "contexts 0 to 3", "reconstruction", "[0, 0]")):
        case.evaluate()


def test_a_rank_that_is_stated_is_refused_before_the_passes_and_another_one_capped(model):
    case = Case(model, SAE)
    few = {hook: PrincipalDirections(p.mean, p.directions[:3]) for hook, p in case.principal.items()}
    case.principal = few
    assert case.evaluate().metrics["pca_rank"] == 3  # L0 is 5
    evaluator = Evaluator(model, RawDictionary(case.dictionary, case.norms), few, held_out(case.tokens))
    evaluator.models = None  # no pass can begin
    with pytest.raises(NumericsError, match=saying("evaluation.pca_rank:", 4, "3 leading", HOOK, "at most 3", "null")):
        evaluator.evaluate(4)


def test_a_dead_dictionary_is_evaluated(model):
    """What is undefined of a reconstruction of zero everywhere is left out, the rest is there."""
    case = Case(model, SAE)
    with torch.no_grad():
        for name in ("W_D", "b_D"):
            case.dictionary.get_parameter(name).zero_()
    got = case.evaluate().metrics
    assert "relative_reconstruction_bias" not in got
    assert "saebench/relative_reconstruction_bias" not in got
    assert got["fvu"] == got["zero_fvu"]
    assert got["nmse"] == 1.0
    assert got["ce_spliced"] == pytest.approx(got["ce_zero"])


def test_a_dead_layer_of_a_cross_layer_transcoder_is_evaluated(model):
    reads = [f"blocks.{layer}.ln2.hook_out" for layer in range(2)]
    writes = [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
    config = {"kind": "clt", "hook_points_in": reads, "hook_points_out": writes, "d_in": D_MODEL, "d_sae": 24}
    case = Case(model, {**config, "act_fn": "topk", "top_k": 3})
    with torch.no_grad():
        case.dictionary.get_parameter("W_D.0").zero_()
        case.dictionary.get_parameter("b_D")[0] = 0.0
    got = case.evaluate().metrics
    assert f"relative_reconstruction_bias.{writes[0]}" not in got
    assert f"relative_reconstruction_bias.{writes[1]}" in got
    assert got[f"fvu.{writes[0]}"] == got[f"zero_fvu.{writes[0]}"]


def test_density_and_histogram_are_those_of_the_features(model):
    case = Case(model, SAE)
    evaluation = case.evaluate()
    with torch.no_grad():
        f = case.dictionary.encode(case.activations[HOOK])[case.mask]
    assert torch.equal(evaluation.density, (f > 0).double().mean(0))
    assert sum(evaluation.histogram.counts) + evaluation.histogram.never == case.dictionary.config.d_sae
