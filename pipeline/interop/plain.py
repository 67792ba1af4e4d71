"""A dictionary between two formats: plain tensors on raw activations, with the field's own names.

    z = x W_enc + b_enc;   f = z where the gate says so, else 0;   y = f W_dec + b_dec (+ x W_skip)

Nothing is subtracted from x, nothing is normalised; what a format has beside that (a bias subtracted from the input, norms of
a data set, gated encoders, selection by decoder norm) its file puts into these tensors, exactly, or refuses by name.

    sae, transcoder   W_enc [d_in, F], b_enc [F], W_dec [F, d_out], b_dec [d_out], W_skip [d_in, d_out] (transcoder, optional);
                      of a GLU encoder W_glu [d_in, F] and b_glu [F]: z times the sigmoid of x W_glu + b_glu
    crosscoder        W_enc [H, d, F], b_enc [F], W_dec [H, F, d], b_dec [H, d]
    clt               W_enc [L, d, F], b_enc [L, F], W_dec.j [j + 1, F, d] for each target layer j, b_dec [L, d]
    lorsa             W_Q, W_K [Q, d, dh], b_Q, b_K [Q, dh], W_V [F, d], b_V [F], W_O [F, d], b_dec [d], q_gain, k_gain [Q, dh]

with threshold [F] ([L, F]) where the gate is jumprelu: active is z > max(threshold, 0). GLU encoders and the gate layertopk, in
which the layers of a clt compete for k, are read and not written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import config_from_dict, dictionary_class
from pipeline.errors import DataError, ParamsError
from pipeline.params.choices import NORMS_OF_THE_DATA

GATES = ("relu", "jumprelu", "topk")
TINY = 1e-38  # threshold of a feature that is active wherever it is positive: its logarithm is finite, its value none
# Our tensors -> those of the plain form.
_NAMES = {
    "W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec", "W_G": "W_glu", "b_G": "b_glu", "w_V": "W_V", "w_O": "W_O",
}  # fmt: skip
_LORSA = (
    "n_qk_heads", "d_qk_head", "n_ctx", "positional_embedding_type", "rotary_dim", "rotary_base", "rotary_adjacent_pairs",
    "rotary_scale", "use_NTK_by_parts_rope", "NTK_by_parts_factor", "NTK_by_parts_low_freq_factor",
    "NTK_by_parts_high_freq_factor", "old_context_len", "attn_scale", "use_post_qk_ln", "normalization_type", "eps",
)  # fmt: skip
_SEVERAL = ("clt", "crosscoder")


@dataclass(frozen=True)
class PlainDictionary:
    """A dictionary on raw activations.

    Attributes:
        kind: sae, transcoder, crosscoder, clt or lorsa.
        gate: relu, jumprelu or topk; layertopk of a clt that is read.
        tensors: by the names of this module's docstring, float32 or float64, on the CPU.
        hooks_in, hooks_out: what is read and written.
        k: of topk, for each token (and layer); of layertopk, for each token.
        attention: of lorsa, the fields of our configuration that say what its attention is.
        about: where it comes from, plain values: model_name, model_revision, dataset_path, context_size, prepend_bos, and what
            else a format states.
        said: what was done to the tensors of the file, or is not carried on, a sentence each.
        units: of an export, how much larger its features are than the dictionary's, [F] ([L, F]); None: equal.
    """

    kind: str
    gate: str
    tensors: Mapping[str, Tensor]
    hooks_in: tuple[str, ...]
    hooks_out: tuple[str, ...]
    k: int | None = None
    attention: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    units: Tensor | None = None

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.tensors["W_V"].shape[-1] if self.kind == "lorsa" else self.tensors["W_enc"].shape[-2]

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.tensors["b_dec"].shape[-1]

    @property
    def d_sae(self) -> int:
        """F, of each layer."""
        return self.tensors["W_V"].shape[0] if self.kind == "lorsa" else self.tensors["W_enc"].shape[-1]

    @property
    def skip(self) -> bool:
        """Whether x W_skip is added."""
        return "W_skip" in self.tensors

    @property
    def thresholds(self) -> Tensor:
        """theta of the gate, of the shape of the encoder's bias; 0 for relu."""
        bias = self.tensors["b_V" if self.kind == "lorsa" else "b_enc"]
        return self.tensors["threshold"] if self.gate == "jumprelu" else torch.zeros_like(bias)

    def with_tensors(self, *said: str, units: Tensor | None = None, **tensors: Tensor) -> PlainDictionary:
        """With these in place of its own, and what is to be said of that."""
        both = self.units if units is None else units if self.units is None else self.units * units
        return dataclasses.replace(self, tensors={**self.tensors, **tensors}, said=(*self.said, *said), units=both)


def plain_of(dictionary: Dictionary) -> PlainDictionary:
    """A dictionary of ours as plain tensors in float64.

    Args:
        dictionary: folded, or trained with a norm that can be folded.

    Raises:
        ParamsError: no format can hold it, and why: its norm depends on the data or is not known, its gate looks at the batch
            or at several layers, its encoder is gated (GLU), its kind is of another package.
    """
    config = dictionary.config
    where = f"export: dictionary.kind {config.kind}, act_fn {config.act_fn}"
    if not config.folded:
        dictionary = _folded(dictionary, where)
    if dictionary.is_batch_dependent:
        raise ParamsError(
            f"{where}: which features are active depends on the batch, which no format holds; export what the fold stage makes "
            "of it (a jumprelu with a calibrated threshold), or dictionary.to_jumprelu(batches)"
        )
    if config.act_fn not in GATES:
        raise ParamsError(
            f"{where}: this gate is written in no format (written: {', '.join(GATES)}); fold.convert_topk_to_jumprelu: true"
        )
    if getattr(config, "use_glu_encoder", False):
        raise ParamsError(f"{where}: use_glu_encoder: an encoder that is multiplied by a second one is written in no format")
    if config.kind not in ("sae", "transcoder", "crosscoder", "clt", "lorsa"):
        raise ParamsError(f"{where}: no format holds this kind (held: sae, transcoder, crosscoder, clt, lorsa)")
    made = dictionary.absorbed()
    said: tuple[str, ...] = () if config.folded else ("the norms were folded into the weights",)
    scale = made.gate_scale
    tensors = {name: tensor.detach().double().cpu() for name, tensor in made.state_dict().items() if name != "gate_scale"}
    if made.activation.has_threshold:
        del tensors["log_jumprelu_threshold"]
        tensors["threshold"] = made.log_jumprelu_threshold.detach().cpu().exp().double()
    tensors = {_plain_name(name): tensor for name, tensor in tensors.items()}
    kind = "transcoder" if config.kind == "sae" and made.hooks_in != made.hooks_out else config.kind
    if "b_dec" not in tensors:
        layers = (len(made.hooks_out),) if kind in _SEVERAL else ()
        tensors["b_dec"] = torch.zeros(*layers, config.d_out, dtype=torch.float64)
    plain = PlainDictionary(
        kind,
        config.act_fn,
        tensors,
        tuple(made.hooks_in),
        tuple(made.hooks_out),
        k=config.top_k if config.act_fn == "topk" else None,
        attention={name: getattr(config, name) for name in _LORSA} if kind == "lorsa" else {},
        about=_about(config.provenance),
        said=said,
    )
    if scale is not None:
        says = "features have the unit in which they compete for the k places (their decoder rows have other lengths)"
        plain = rescaled(plain, scale.detach().double().cpu(), says)
    return plain


def _folded(dictionary: Dictionary, where: str) -> Dictionary:
    config = dictionary.config
    if config.norm_activation in NORMS_OF_THE_DATA:
        raise ParamsError(
            f"{where}: norm_activation {config.norm_activation} depends on the data, so that no weights take raw activations; "
            "train with dataset-wise"
        )
    if config.norms is None and config.norm_activation != "inference":
        raise ParamsError(
            f"{where}: it takes normalised activations (norm_activation {config.norm_activation}) and has no norms to fold; "
            "give the output of the fold stage, or dictionary.fold(norms)"
        )
    return dictionary.fold(config.norms)


def _plain_name(name: str) -> str:
    first, dot, rest = name.partition(".")
    return _NAMES.get(first, first) + dot + rest


def _about(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What of a dictionary's provenance other formats have a place for."""
    model, fold, training = (provenance.get(key) or {} for key in ("model", "fold", "training"))
    about: dict[str, Any] = dict(provenance.get("imported", {}).get("about", {}))
    found = {
        "model_name": model.get("name"),
        "model_revision": model.get("revision"),
        "training_architecture": fold.get("act_fn_before"),
        "l0": fold.get("l0_after"),
        "training_tokens": training.get("tokens"),
    }
    return about | {key: value for key, value in found.items() if value is not None}


def rescaled(plain: PlainDictionary, units: Tensor, *said: str) -> PlainDictionary:
    """Features times `units` [F] ([L, F]), decoder rows over them: the same reconstructions of a gate that allows it.

    Exact for relu and jumprelu; the topk gate then selects by the new units.
    """
    tensors = plain.tensors
    if plain.kind == "lorsa":
        changed = {"W_V": tensors["W_V"] * units[:, None], "b_V": tensors["b_V"] * units}
        changed["W_O"] = tensors["W_O"] / units[:, None]
    else:
        changed = {"W_enc": tensors["W_enc"] * units.unsqueeze(-2), "b_enc": tensors["b_enc"] * units}
        for name in (name for name in tensors if name.split(".")[0] == "W_dec"):
            own = units[: tensors[name].shape[0]] if plain.kind == "clt" else units
            changed[name] = tensors[name] / own.unsqueeze(-1)
    if "threshold" in tensors:
        changed["threshold"] = tensors["threshold"] * units
    return plain.with_tensors(*said, units=units, **changed)


def decoder_lengths(plain: PlainDictionary) -> Tensor:
    """Length of all that each feature writes, [F] ([L, F] of a clt)."""
    tensors = plain.tensors
    if plain.kind == "lorsa":
        return torch.linalg.vector_norm(tensors["W_O"], dim=-1)
    if plain.kind == "crosscoder":
        return torch.linalg.vector_norm(tensors["W_dec"], dim=(0, 2))
    if plain.kind == "clt":
        squares = torch.zeros_like(tensors["b_enc"])
        for j in range(len(plain.hooks_out)):
            squares[: j + 1] += tensors[f"W_dec.{j}"].square().sum(-1)
        return squares.sqrt()
    return torch.linalg.vector_norm(tensors["W_dec"], dim=-1)


def unit_rows(plain: PlainDictionary) -> PlainDictionary:
    """With decoder rows of length 1, where they are not and the gate allows it; a feature without rows keeps its unit."""
    lengths = decoder_lengths(plain)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    if plain.gate == "topk" or torch.allclose(lengths, torch.ones_like(lengths), rtol=1e-6, atol=0):
        return plain
    return rescaled(plain, lengths, "decoder rows have length 1: features are their length in the model's units")


def dictionary_of(plain: PlainDictionary, provenance: Mapping[str, Any] | None = None, name: str = "main") -> Dictionary:
    """Our dictionary of plain tensors: folded, in float32, its features in the units that they have there.

    Args:
        plain: of one of the formats.
        provenance: entries for its configuration.
        name: of the dictionary.

    Raises:
        DataError: names or widths that no kind of ours can have, all at once.
    """
    gate, tensors = plain.gate, dict(plain.tensors)
    if gate == "jumprelu" and not (tensors["threshold"] > 0).any():
        gate = "relu"
    thresholds = tensors.pop("threshold", None)
    several = plain.kind in _SEVERAL
    hooks: dict[str, Any] = {
        "hook_points_in" if several else "hook_point_in": list(plain.hooks_in) if several else plain.hooks_in[0],
        "hook_points_out" if several else "hook_point_out": list(plain.hooks_out) if several else plain.hooks_out[0],
    }
    values = {"kind": plain.kind, "name": name, "act_fn": gate, "d_in": plain.d_in, "d_out": plain.d_out, "d_sae": plain.d_sae}
    values |= hooks | dict(plain.attention)
    values |= {"norm_activation": "inference", "folded": True, "sparsity_include_decoder_norm": False}
    if gate in ("topk", "layertopk"):
        values["top_k"] = _k(plain)
    if gate == "layertopk":
        values["top_k_of"] = "token"
    if plain.skip:
        values["skip"] = True
    if "W_glu" in tensors:
        values["use_glu_encoder"] = True
    try:
        config = config_from_dict({**values, "provenance": dict(provenance or {})})
    except ParamsError as error:
        raise DataError([f"import: {fault}" for fault in error.faults]) from None
    ours = {plain_name: name for name, plain_name in _NAMES.items()}
    weights = {}
    for key, tensor in tensors.items():
        first, dot, rest = key.partition(".")
        weights[ours.get(first, first) + dot + rest] = tensor.float()
    if gate == "jumprelu":
        assert thresholds is not None
        weights["log_jumprelu_threshold"] = thresholds.double().clamp_min(TINY).log().float()
    made = dictionary_class(config.kind)(config)
    made.load_weights_(weights)
    return made


def _k(plain: PlainDictionary) -> int | None:
    """k, which is at most the number of features that compete."""
    n = plain.d_sae * (len(plain.hooks_in) if plain.gate == "layertopk" else 1)
    if plain.k is not None and plain.k > n:
        raise DataError(
            f"import: k should be at most {n:,}, the number of features, got {plain.k:,}; correct the configuration"
        )
    return plain.k
