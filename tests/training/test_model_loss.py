"""The loss through the language model: the gradients of a step by plain autograd, and the contexts that steps take."""

from __future__ import annotations

import dataclasses
import math
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.activations import plan as plan_module
from pipeline.activations.live import LiveActivations
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.kernels.cpu import CpuEntries
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from pipeline.norms.exclusion import NormLimits
from pipeline.params.schema import TrainerParams
from pipeline.streaming import ActivationStream, stream_activations
from pipeline.training.model_loss import ContextSource, SplicedContexts, run_tokens, with_model_loss
from pipeline.training.on_activations import train_dictionary, train_on_text
from pipeline.training.source import StoreSource, TrainingBatch
from pipeline.training.step import Trainer
from tests.evaluation.tiny import CONTEXT, D_MODEL, tiny_tokens, write_tiny_model
from tests.messages import saying
from tests.project import CONTEXT as PROJECT_CONTEXT
from tests.project import make_model
from tests.training.cases import same

LAYER, N = 1, 6
RESIDUAL = f"blocks.{LAYER}.hook_resid_pre"
POST = f"blocks.{LAYER}.hook_resid_post"
KINDS: dict[str, dict[str, Any]] = {
    "sae": {"hook_point_in": POST},
    "transcoder": {"hook_point_in": "blocks.1.ln2.hook_out", "hook_point_out": "blocks.1.hook_mlp_out", "skip": True},
    "lorsa": {
        "hook_point_in": "blocks.1.ln1.hook_out",
        "hook_point_out": "blocks.1.hook_attn_out",
        "n_qk_heads": 4,
        "d_qk_head": 4,
        "n_ctx": CONTEXT,
        "rotary_dim": 2,
    },
}
CASES = [
    ("sae", "topk", "dataset-wise", "kl"),
    ("sae", "topk", "token-wise", "kl"),
    ("sae", "batchtopk", "batch-wise", "ce"),
    ("sae", "jumprelu", "dataset-wise", "kl"),
    ("transcoder", "topk", "dataset-wise", "kl"),
    ("transcoder", "relu", "dataset-wise", "ce"),
    ("lorsa", "topk", "dataset-wise", "kl"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """In float64, so that gradients can be compared closely."""
    loaded: Any = load_language_model(write_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), device="cpu")
    loaded._model.double()
    loaded.dtype = torch.float64
    return loaded


def dictionary(kind: str, act_fn: str, norm: str) -> Dictionary:
    config = {"kind": kind, "d_in": D_MODEL, "d_sae": 40, "act_fn": act_fn, "top_k": 4, "dtype": "float64", **KINDS[kind]}
    made = build_dictionary({**config, "norm_activation": norm}, seed=1)
    if act_fn == "jumprelu":
        with torch.no_grad():
            made.log_jumprelu_threshold.fill_(math.log(0.5))
    return made


def norms_of(made: Dictionary) -> dict[str, float]:
    hooks = dict.fromkeys((*made.hooks_in, *made.hooks_out))
    return {hook: 3.0 + index for index, hook in enumerate(hooks)}


def batch_of(model: LanguageModel, made: Dictionary, kind: str, at_once: int = N) -> TrainingBatch:
    """Contexts with special tokens, and two further ones that are excluded."""
    tokens = torch.from_numpy(tiny_tokens(N).astype(np.int64))
    kept = tokens != 0
    mask = kept.clone()
    mask[0, 3] = mask[2, 5] = False
    (written,) = made.hooks_out
    found = model.activations(tokens, [*made.hooks_in, written, RESIDUAL])
    inputs = found[made.hooks_in[0]]
    labels = inputs if made.hooks_in == made.hooks_out else found[written]
    contexts = SplicedContexts(model, kind, written, tokens, kept, found[RESIDUAL], found[written], at_once)
    return TrainingBatch(0, inputs, labels, mask, contexts)


def put_in(model: Any, hook: str, tokens: Tensor, value: Tensor | None) -> Tensor:
    """Logits of the transformers model, with `value` as the output of the hook point's module; differentiable."""
    block: Any = model._model.gpt_neox.layers[LAYER]
    module: nn.Module = {"hook_resid_post": block, "hook_mlp_out": block.mlp, "hook_attn_out": block.attention}[hook[9:]]

    def replace(_: nn.Module, args: object, output: Any) -> Any:
        if value is None:
            return output
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = module.register_forward_hook(replace)
    try:
        return model._model(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()


def factor_of(norm: str, mean_norm: float, x: Tensor, mask: Tensor) -> Any:
    if norm == "dataset-wise":
        return math.sqrt(D_MODEL) / mean_norm
    lengths = x.norm(dim=-1, keepdim=True)
    return math.sqrt(D_MODEL) / (lengths if norm == "token-wise" else lengths[mask].mean())


def by_autograd(
    model: LanguageModel, made: Dictionary, batch: TrainingBatch, norm: str, kind: str
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The terms of the loss and its gradients, everything dense and differentiated by torch."""
    contexts, mask, norms = batch.contexts, batch.mask, norms_of(made)
    assert contexts is not None
    assert mask is not None
    (read,), (written,) = made.hooks_in, made.hooks_out
    x = batch.inputs * factor_of(norm, norms[read], batch.inputs, mask)
    scale = factor_of(norm, norms[written], batch.labels, mask)
    r = made.reconstruct(made.codes(x, mask).f, x)
    l_rec = (r - batch.labels * scale).square().sum(-1)[mask].mean()
    spliced = put_in(model, written, contexts.tokens, torch.where(mask[..., None], r / scale, contexts.original))
    counted, tokens = contexts.kept[:, 1:], contexts.tokens
    log_q = spliced[:, :-1].log_softmax(-1)[counted]
    if kind == "ce":
        loss = nn.functional.nll_loss(log_q, tokens[:, 1:][counted])
    else:
        log_p = put_in(model, written, tokens, None)[:, :-1].log_softmax(-1)[counted]
        loss = nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    (l_rec + loss * (l_rec / (4 * loss)).detach()).backward()
    gradients = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    return {"l_rec": float(l_rec.detach()), "model_loss": float(loss.detach())}, gradients


@pytest.mark.parametrize("entries", [True, False])
@pytest.mark.parametrize(("kind", "act_fn", "norm", "loss"), CASES)
def test_a_step_has_the_gradients_of_plain_autograd(
    model: LanguageModel, kind: str, act_fn: str, norm: str, loss: str, entries: bool
) -> None:
    """By chosen entries and densely; the model's loss counts a quarter of the reconstruction's."""
    made = dictionary(kind, act_fn, norm)
    batch = batch_of(model, made, loss, at_once=4)
    terms, wanted = by_autograd(model, made, batch, norm, loss)
    params = TrainerParams(lr=1e-9, lr_warm_up_steps=0, lr_cool_down_steps=0, n_checkpoints=0, model_loss=loss)
    trainer = Trainer(made, params, total_steps=10, norms=norms_of(made))
    with mock.patch.object(CpuEntries, "entries_pay", return_value=entries):
        by_entries = made.step_codes(batch.inputs, batch.mask, decoded_only=True).entries is not None
        observation = trainer.step(batch, observe=True)
    assert by_entries == entries
    assert observation is not None
    figures = observation.figures()
    for name, value in terms.items():
        assert figures[name] == pytest.approx(value, rel=1e-6)
    assert figures["model_loss_weighted"] == pytest.approx(terms["l_rec"] / 4, rel=1e-6)
    assert figures["loss"] == pytest.approx(1.25 * terms["l_rec"], rel=1e-6)
    found = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert {"W_E", "W_D"} <= wanted.keys() or kind == "lorsa"
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_the_gradient_in_the_reconstruction_by_finite_differences(model: LanguageModel, loss: str) -> None:
    made = dictionary("sae", "topk", "dataset-wise")
    batch = batch_of(model, made, loss)
    contexts, factor = batch.contexts, 0.7
    assert contexts is not None
    draw = torch.Generator().manual_seed(3)
    r, direction = (torch.randn(batch.labels.shape, generator=draw, dtype=torch.float64) for _ in range(2))
    value, gradient = contexts.loss(r, factor, batch.mask)
    step = 1e-5
    above, below = (contexts.loss(r + sign * step * direction, factor, batch.mask)[0] for sign in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(above - below) / (2 * step), rel=1e-5)
    assert batch.mask is not None
    assert float(gradient[~batch.mask].abs().max()) == 0.0  # these keep their own activation
    parts = dataclasses.replace(contexts, at_once=1).loss(r, factor, batch.mask)
    torch.testing.assert_close(parts, (value, gradient))
    if loss == "kl":
        assert float(contexts.loss(batch.labels * factor, factor, None)[0]) == pytest.approx(0.0, abs=1e-12)


def test_massive_tokens_that_no_rule_excludes_keep_their_own_activation(model: LanguageModel) -> None:
    made = dictionary("sae", "topk", "dataset-wise")
    batch = batch_of(model, made, "kl")
    assert batch.mask is not None
    inputs = batch.inputs.clone()
    inputs[1, 4] *= 1000
    norm = {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL, "median_norm": float(inputs.norm(dim=-1).median())}
    trainer = Trainer(made, TrainerParams(model_loss="kl"), total_steps=10, norms={POST: norm})
    with mock.patch.object(SplicedContexts, "loss", autospec=True, side_effect=SplicedContexts.loss) as loss:
        trainer.step(TrainingBatch(0, inputs, inputs, batch.mask, batch.contexts))
    wanted = batch.mask.clone()
    wanted[1, 4] = False
    assert loss.call_args.kwargs["replaced"].equal(wanted)


# Which contexts ---------------------------------------------------------------------------------------------------------

TEXTS = [f"the cat number {i} sat on the mat and saw {i * 7 % 13} dogs" * 3 for i in range(200)]
HOOK, B, TOTAL = "blocks.0.hook_resid_post", 64, 40
SHAPE, RUN = {"d_sae": 64, "top_k": 4}, {"total_training_tokens": B * TOTAL, "lr": 1e-3}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streaming") / "model"
    make_model(path)
    return path


def streamed(model: LanguageModel | str, **changes: Any) -> ActivationStream:
    stated = {"total_tokens": 4000, "context_size": PROJECT_CONTEXT, "model_batch_size": 3, "batch_size": B, **changes}
    return stream_activations(model, TEXTS, [HOOK], **stated)


@pytest.fixture(scope="module")
def stream(model_path: Path) -> ActivationStream:
    return streamed(load_language_model(model_path, device="cpu"))


def source_of(live: LiveActivations, rows: tuple[int, int], limit: float | None = None) -> ContextSource:
    limits = NormLimits({} if limit is None else {HOOK: limit})
    whole = live.target == "activations-2d"
    batch_size = B // PROJECT_CONTEXT if whole else B
    source = StoreSource(live, (HOOK,), (HOOK,), batch_size, rows, limits, 4000, seed=3)
    params = TrainerParams(model_loss="kl", model_loss_steps=0.25, model_loss_batches=2)
    made = with_model_loss(source, params, TOTAL)
    assert isinstance(made, ContextSource)
    assert run_tokens(source, params, TOTAL) == 30 * B + 10 * 2 * B
    assert run_tokens(source, TrainerParams(), TOTAL) == TOTAL * B
    return made


@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_the_last_steps_take_whole_contexts_of_the_training_rows(
    model_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "BLOCK_ROWS", 256)
    model = load_language_model(model_path, device="cpu")
    stream = streamed(model, target=target, batch_size=4)  # its tokens go with it
    live = stream.activations
    stop = live.n_rows * 3 // 4
    source = source_of(live, (0, stop))
    assert (source.first, source.n_contexts) == (30, 2 * B // PROJECT_CONTEXT)
    own = source.source.batches(28)
    batches = source.batches(28)
    for _ in range(2):
        wanted, batch = next(own), next(batches)
        assert batch.inputs.equal(wanted.inputs)
        assert batch.contexts is None
    found = [next(batches) for _ in range(10)]
    assert [batch.index for batch in found] == list(range(30, 40))
    later = next(source.batches(35))
    assert later.inputs.equal(found[5].inputs)
    allowed = set(live.contexts_within((0, stop)).tolist())
    kept_back = live.read_rows_meta(stop, live.n_rows).context_ids.unique().tolist()
    ids = np.concatenate([source.context_ids(index) for index in range(30, 40)])
    per_pass = len(allowed) // source.n_contexts * source.n_contexts
    assert len(set(ids[:per_pass].tolist())) == min(per_pass, len(ids))
    assert set(ids.tolist()) <= allowed
    assert not set(ids.tolist()) & set(kept_back)
    contexts = found[0].contexts
    assert contexts is not None
    tokens = torch.from_numpy(live._contexts.take(ids[: source.n_contexts])).long()
    assert contexts.tokens.equal(tokens)
    torch.testing.assert_close(found[0].inputs, model.activations(tokens, [HOOK])[HOOK], rtol=1e-5, atol=1e-6)
    assert found[0].labels is found[0].inputs
    assert found[0].mask is not None
    assert found[0].mask.equal(torch.from_numpy(live._contexts.mask(ids[: source.n_contexts])))
    assert "whole" in source.position(30)
    assert source.position(29) == source.source.position(29)


def test_excluded_tokens_are_masked_and_their_predictions_count(stream: ActivationStream) -> None:
    live = stream.activations
    plain = next(source_of(live, (0, live.n_rows)).batches(30))
    limit = float(plain.inputs.norm(dim=-1).median())
    batch = next(source_of(live, (0, live.n_rows), limit).batches(30))
    assert batch.mask is not None
    assert plain.mask is not None
    assert batch.mask.equal(plain.mask & (plain.inputs.norm(dim=-1) <= limit))
    assert batch.contexts is not None
    assert batch.contexts.kept.equal(plain.mask)


def test_nothing_reads_rows_ahead_beside_the_contexts(stream: ActivationStream) -> None:
    """Two threads would run the one model, whose blocks are replaced for a start midway."""
    before = set(threading.enumerate())
    batches = source_of(stream.activations, (0, stream.activations.n_rows)).batches(29)
    assert next(batches).contexts is None
    assert set(threading.enumerate()) > before
    assert next(batches).contexts is not None
    assert set(threading.enumerate()) <= before


def test_a_run_that_is_resumed_inside_has_the_same_bits(stream: ActivationStream) -> None:
    def new() -> Trainer:
        made = build_dictionary({"kind": "sae", "d_in": D_MODEL, "hook_point_in": HOOK, "act_fn": "topk", **SHAPE}, seed=1)
        params = TrainerParams(lr=1e-2, lr_warm_up_steps=2, lr_cool_down_steps=3, model_loss="kl", revive_dead_features=True)
        return Trainer(made, params, total_steps=TOTAL, norms={HOOK: 2.0})

    rows = (0, stream.activations.n_rows)
    unbroken, state = new(), {}
    for batch in source_of(stream.activations, rows).batches(0):
        if batch.index == TOTAL:
            break
        if batch.index == 34:
            state = {name: tensor.clone() for name, tensor in unbroken.state().items()}
        unbroken.step(batch)
    resumed = new()
    resumed.load(state, 34)
    for batch in source_of(stream.activations, rows).batches(34):
        if batch.index == TOTAL:
            break
        resumed.step(batch)
    assert same(unbroken.state(), resumed.state())


def test_a_training_in_python(stream: ActivationStream, model_path: Path) -> None:
    trainer = {**RUN, "log_frequency": 1, "model_loss_steps": 0.25, "model_loss_batches": 2, "lr_cool_down_steps": 0.25}
    tuned, plain = (
        train_dictionary(stream, dictionary=SHAPE, trainer=trainer | {"model_loss": loss} if loss else RUN)
        for loss in ("kl", None)
    )
    assert [row["step"] for row in tuned.history if "model_loss" in row] == list(range(30, 40))
    assert not any("model_loss" in row for row in plain.history)
    shape = {"total_tokens": 4000, "context_size": PROJECT_CONTEXT, "model_batch_size": 3, "batch_size": B}
    again = train_on_text(str(model_path), TEXTS, [HOOK], dictionary=SHAPE, trainer=trainer | {"model_loss": "kl"}, **shape)
    assert same(tuned.dictionary.state_dict(), again.dictionary.state_dict())
    assert not same(tuned.dictionary.state_dict(), plain.dictionary.state_dict())


def test_refusals(stream: ActivationStream, model_path: Path, tmp_path: Path) -> None:
    from pipeline.streaming import write_activations
    from pipeline.training.fit import fit

    trainer = {**RUN, "model_loss": "kl", "model_loss_steps": 4}
    part = streamed(str(model_path))
    with pytest.raises(DataError, match=saying("hook points alone", "no logits")):
        train_dictionary(part, dictionary=SHAPE, trainer=trainer)
    with pytest.raises(ParamsError, match=saying("trainer.model_loss", "activations.source", "store", "live", "stream")):
        train_dictionary(write_activations(stream, tmp_path), dictionary=SHAPE, trainer=trainer, batch_size=B)
    with pytest.raises(ParamsError, match=saying("trainer.model_loss", "activations.source", "store", "live")):
        fit(torch.randn(400, 8), dictionary=SHAPE, trainer=trainer, batch_size=B)
    with pytest.raises(DataError, match=saying("trainer.model_loss", "activations.total_tokens", "activations.batch_size")):
        source_of(stream.activations, (0, B))
