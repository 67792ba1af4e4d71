"""Promoted and suppressed tokens against loops; rows of unfolded dictionaries in raw space; layers summed."""

from __future__ import annotations

import pytest
import torch

from pipeline.analysis.attribution import attribute, logit_effects, standing, writes_residual_stream, written_directions
from pipeline.analysis.texts import ReadableTexts
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.hook_keys import SITES
from pipeline.norms.hook_norm import as_hook_norm
from tests.analysis.test_inspection import folded, sae
from tests.messages import saying
from tests.project import D_MODEL


def test_tokens_are_those_of_a_loop(small_model, finished_project) -> None:
    from transformers import GPTNeoXForCausalLM

    module = GPTNeoXForCausalLM.from_pretrained(finished_project.path / "model", dtype=torch.float32)
    made = folded(sae())
    direction = made.get_parameter("W_D")[7].detach().double()
    gain = module.gpt_neox.final_layer_norm.weight.detach().double()
    mean = sum(float(v) for v in direction) / D_MODEL
    logits = []
    for row in module.get_output_embeddings().weight.detach().double():
        logits.append(sum(float(row[i]) * float(gain[i]) * (float(direction[i]) - mean) for i in range(D_MODEL)))
    order = sorted(range(len(logits)), key=lambda token: logits[token])
    (found,) = attribute(written_directions(made)[7:8], small_model, top=4)
    for got, tokens in ((found.suppressed, order[:4]), (found.promoted, order[:-5:-1])):
        assert [text for text, _ in got] == [ReadableTexts(small_model)(token) for token in tokens]
        assert [value for _, value in got] == pytest.approx([logits[token] for token in tokens], rel=1e-4)


def test_promoted_bytes_can_be_told_apart(small_model) -> None:
    (found,) = attribute(torch.ones(1, D_MODEL).cumsum(1), small_model, top=10**6)
    for effects in found:
        shown = {text for text, _ in effects}
        assert {"<0xE7>", "<0xFF>"} <= shown
        assert not any("\ufffd" in text for text in shown)


def test_unfolded_rows_are_brought_to_raw_space() -> None:
    made = sae()
    norms = {made.hooks_in[0]: as_hook_norm({"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}, D_MODEL)}
    raw = made.fold({made.hooks_in[0]: {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}}, feature_units="normalized")
    norm = made.decoder_norms().detach()
    torch.testing.assert_close(written_directions(made, norms) / norm[:, None], written_directions(raw), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dataset-wise", "dataset-rms"])
def test_unfolded_rows_move_the_raw_reconstruction(name: str) -> None:
    made = sae(norm_activation=name)
    norms = {made.hooks_in[0]: as_hook_norm({"mean_norm": 20.0, "mean_square": 500.0, "d": D_MODEL}, D_MODEL)}
    raw = RawDictionary(made, norms)
    f = torch.zeros(1, 40)
    f[0, 3] = 2.0
    moved = (made.decode(f) - made.decode(torch.zeros(1, 40))) / raw.normalizer.factor(made.hooks_in[0])
    torch.testing.assert_close(2.0 * written_directions(made, norms)[3], moved[0].detach(), rtol=1e-5, atol=1e-5)


def test_only_what_is_added_to_the_residual_stream_has_logits() -> None:
    assert [writes_residual_stream(sae(f"blocks.0.{site}")) for site in SITES] == [
        site.startswith(("hook_resid", "hook_attn", "hook_mlp")) for site in SITES
    ]


def test_layers_are_summed_over_what_they_write() -> None:
    hooks = [f"blocks.{layer}.ln2.hook_out" for layer in range(2)], [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
    config = {"kind": "clt", "hook_points_in": hooks[0], "hook_points_out": hooks[1], "d_in": D_MODEL, "d_sae": 40}
    made = folded(build_dictionary({**config, "act_fn": "topk", "top_k": 3}, seed=0))
    found = written_directions(made)
    assert found.shape == (80, D_MODEL)
    both = made.get_parameter("W_D.0")[0, 5] + made.get_parameter("W_D.1")[0, 5]
    torch.testing.assert_close(found[5], both.detach())
    torch.testing.assert_close(found[45], made.get_parameter("W_D.1")[1, 5].detach())
    with pytest.raises(DataError, match=saying("no hook point", "'other'")):
        written_directions(made, alias="other")


def test_a_feature_of_several_layers_of_the_residual_stream_counts_once() -> None:
    """A splice takes the stream's place: only what is written at the last hook point, and added after it, is left."""
    hooks = ["blocks.1.hook_resid_post", "blocks.0.hook_resid_post", "tuned:blocks.1.hook_resid_pre"]
    config = {"kind": "crosscoder", "d_in": D_MODEL, "d_sae": 40, "act_fn": "topk", "top_k": 3}
    made = folded(build_dictionary({**config, "hook_points_in": hooks}, seed=0))
    torch.testing.assert_close(written_directions(made), made.written_rows(0).detach())
    torch.testing.assert_close(written_directions(made, alias="tuned"), made.written_rows(2).detach())
    mixed = ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
    assert standing(mixed) == [1, 2, 3]
    assert standing(["blocks.0.hook_attn_out", "blocks.1.hook_attn_out"]) == [0, 1]


def test_kurtosis_is_that_of_scipy_and_other_widths_are_refused(small_model) -> None:
    from scipy.stats import kurtosis

    directions = written_directions(folded(sae()))[:6]
    effects = logit_effects(directions, small_model, 3)
    logits = small_model.unembedding().logits(directions)
    assert effects.kurtosis.tolist() == pytest.approx(kurtosis(logits.double().numpy(), axis=1).tolist(), rel=1e-6)
    assert torch.equal(effects.promoted[1], logits.topk(3).indices)
    with pytest.raises(DataError, match=saying(D_MODEL - 1, D_MODEL)):
        logit_effects(directions[:, :-1], small_model, 3)
    assert logit_effects(directions, small_model, 10**6).promoted[0].shape == (6, small_model.vocab_size)
