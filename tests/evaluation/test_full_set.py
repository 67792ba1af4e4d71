"""Which dictionaries replace all MLPs, which are refused and why, and what the evaluation says of both; frozen models of other families."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError
from pipeline.evaluation.frozen import Frozen
from pipeline.evaluation.full_set import FullSet
from pipeline.evaluation.measured import Evaluation
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.replaced_sets import full_sets, with_replacement
from pipeline.lm.huggingface import HuggingFaceModel
from pipeline.lm.source import resolve_model
from pipeline.metric_names import EVALUATION
from pipeline.params.loader import load_params
from tests.evaluation.tiny import D_MODEL, N_LAYERS, held_out, principal_of, tiny_tokens
from tests.messages import says

READS = tuple(f"blocks.{layer}.ln2.hook_out" for layer in range(N_LAYERS))
WRITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS))


def transcoder(layer: int, **config: Any) -> RawDictionary:
    fields = {
        "kind": "transcoder",
        "hook_point_in": READS[layer],
        "hook_point_out": WRITES[layer],
        "act_fn": "topk",
        "top_k": 3,
    }
    return RawDictionary(made({**fields, **config}), {})


def made(config: dict[str, Any]) -> Dictionary:
    return build_dictionary({"d_in": D_MODEL, "d_sae": 24, **config}, seed=1).fold(2.0)


def clt(**config: Any) -> RawDictionary:
    fields = {"kind": "clt", "hook_points_in": READS, "hook_points_out": WRITES, "act_fn": "topk", "top_k": 3}
    return RawDictionary(made({**fields, **config}), {})


def test_a_set_is_in_the_order_of_layers_however_given(model: Any) -> None:
    full = FullSet([transcoder(layer) for layer in (2, 0, 1)], model)
    assert (full.hooks_in, full.hooks_out) == (READS, WRITES)
    assert [raw.hooks_out for raw in full.raws] == [(hook,) for hook in WRITES]
    assert FullSet([clt()], model).hooks_in == READS


@pytest.mark.parametrize(
    ("raws", "parts"),
    [
        (lambda: [transcoder(1)], (WRITES[0], WRITES[2], "one transcoder for each layer")),
        (lambda: [transcoder(layer) for layer in (0, 1, 2, 2)], (WRITES[1], "a clt of all")),
        (lambda: [clt(hook_points_in=READS[:2], hook_points_out=WRITES[:2])], (WRITES[2],)),
        (lambda: [transcoder(0, hook_point_in="blocks.0.hook_resid_pre"), transcoder(1), transcoder(2, hook_point_in=READS[1])],
         (READS[1], WRITES[2])),
        (lambda: [RawDictionary(made({"kind": "sae", "hook_point_in": hook}), {}) for hook in WRITES], (WRITES[0], "comes before")),
        (lambda: [transcoder(0, use_glu_encoder=True)], ("use_glu_encoder",)),
    ],
)  # fmt: skip
def test_what_is_no_full_set_is_refused(model: Any, raws: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        FullSet(raws(), model)
    says(error.value, *parts)


def test_a_dictionary_before_the_fold_is_refused(model: Any) -> None:
    unfolded = build_dictionary(
        {"kind": "clt", "hook_points_in": READS, "hook_points_out": WRITES, "d_in": D_MODEL, "d_sae": 24}, seed=1
    )
    raw = RawDictionary.__new__(RawDictionary)
    raw.dictionary, raw.hooks_in, raw.hooks_out = unfolded, READS, WRITES
    with pytest.raises(DataError) as error:
        FullSet([raw], model)
    says(error.value, "fold.mode keep")


def test_members_that_differ_in_hook_points_alone_are_a_set() -> None:
    sweep = {
        f"k{k}-{layer}": {
            "dictionary.kind": "transcoder",
            "dictionary.top_k": k,
            "dictionary.apply_b_dec_to_input": False,
            "dictionary.hook_point_in": READS[layer],
            "dictionary.hook_point_out": WRITES[layer],
        }
        for k in (8, 16)
        for layer in range(2)
    }
    params = dataclasses.replace(load_params("params.yaml"), sweep=sweep)
    raws = {name: transcoder(int(name[-1])) for name in params.members}
    assert [list(members) for members in full_sets(params, raws)] == [["k8-0", "k8-1"], ["k16-0", "k16-1"]]
    raws["k8-1"] = clt()
    assert [list(members) for members in full_sets(params, raws)] == [["k8-0"], ["k8-1"], ["k16-0", "k16-1"]]


def test_each_of_a_set_gets_its_figures_and_others_a_reason(model: Any) -> None:
    tokens = tiny_tokens(3)
    acts = model.activations(torch.from_numpy(tokens).long(), list(WRITES))
    principal = {hook: principal_of(acts[hook][torch.from_numpy(tokens) != 0]) for hook in WRITES}
    none = Evaluation({"fvu": 1.0}, torch.zeros(1), torch.zeros(1), None)  # type: ignore[arg-type]
    whole = {f"l{layer}": transcoder(layer) for layer in range(N_LAYERS)}
    names = [*whole, "lonely"]
    sets = [whole, {"lonely": transcoder(1)}]
    found = with_replacement(dict.fromkeys(names, none), sets, {"": model}, principal, held_out(tokens, 2), 5)
    assert list(found) == names
    figures = {key: value for key, value in found["l0"].metrics.items() if key != "fvu"}
    assert set(figures) == set(EVALUATION["Replacement model"])
    assert all({k: v for k, v in found[name].metrics.items() if k != "fvu"} == figures for name in whole)
    assert found["lonely"].metrics == {"fvu": 1.0}
    assert found["l0"].said == ""
    says(found["lonely"].said, "lonely", "evaluation.replacement_contexts", WRITES[0], WRITES[2])


def family(name: str, path: Path) -> HuggingFaceModel:
    """A small model in float64."""
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
    }
    config = {
        "llama": lambda: LlamaConfig(vocab_size=50, **sizes),
        "gpt2": lambda: GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16),
        "gemma2": lambda: Gemma2Config(vocab_size=50, head_dim=8, **sizes),
    }[name]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config)
        for parameter in made.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    made.save_pretrained(path)
    return HuggingFaceModel(resolve_model(path), made.double().eval())


@pytest.mark.parametrize(("name", "rounding"), [("gpt2", 1e-9), ("llama", 1e-5), ("gemma2", 1e-5)])
def test_a_frozen_model_computes_the_same_and_is_linear_in_what_mlps_add(name: str, rounding: float, tmp_path: Path) -> None:
    """transformers' RMSNorm works in float32, whatever it is given: Llama's and Gemma's figures are rounded to that."""
    model = family(name, tmp_path)
    ids = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))
    outputs = model.activations(ids, [f"blocks.{layer}.hook_mlp_out" for layer in range(2)])
    moved = torch.randn(2, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frozen = Frozen(model, ids)

    def end(scale: float, held: bool = True) -> Tensor:
        replace = {hook: (lambda captured, original, hook=hook: outputs[hook] + scale * moved) for hook in outputs}
        kept: dict[str, Tensor] = {}

        def keep(captured: Any, original: Tensor) -> Tensor:
            kept["end"] = original
            return original

        model.logits(
            ids, {**(frozen.replacements() if held else {}), **replace, "ln_final.hook_out": keep}, capture=frozen.reads
        )
        return kept["end"]

    torch.testing.assert_close(end(0.0), end(0.0, held=False), rtol=rounding, atol=rounding)
    torch.testing.assert_close(end(2.0) - end(0.0), 2 * (end(1.0) - end(0.0)), rtol=rounding, atol=rounding)
    free = end(2.0, held=False) - end(0.0)
    assert float((free - 2 * (end(1.0, held=False) - end(0.0))).norm()) > 1e-3 * float(free.norm())
