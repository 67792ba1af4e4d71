"""The checks between sections. Those within one section stand beside its fields, those of losses and of L0 in
cross_section_losses.py."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.errors import unknown_name
from pipeline.hook_keys import by_model, split_key
from pipeline.params.choices import NORMS_OF_THE_DATA
from pipeline.params.cross_section_losses import RULES as RULES_OF_LOSSES
from pipeline.params.cross_section_losses import steers_thresholds
from pipeline.params.section import Rule, rule
from pipeline.params.sections.trainer import WARMS_UP
from pipeline.shares import resolve_steps

if TYPE_CHECKING:
    from pipeline.params.schema import Params


@rule("activations.hook_points")
def store_has_the_dictionarys_hook_points(params: Params) -> str | None:
    """A stated list of hook points must hold those of the dictionary."""
    stated = params.activations.hook_points
    if not stated:
        return None
    absent = [hook for hook in params.dictionary_hook_points if hook not in stated]
    if not absent:
        return None
    return f"the dictionary needs {', '.join(absent)} too; add it, or write null to take the dictionary's hook points"


@rule("models")
def every_alias_is_a_model(params: Params) -> str | None:
    """A hook point of another model names one of `models`."""
    known = params.models or {}
    for key in dict.fromkeys((*params.dictionary_hook_points, *params.hook_points)):
        alias, _ = split_key(key)
        if alias and alias not in known:
            return f"hook point '{key}': {unknown_name('model', alias, known)}; state its name: {alias}: {{model_name: ...}}"
    return None


def every_model_is_used(params: Params) -> str | None:
    """A model that no hook point names would be left out without a word; asked of parameter files."""
    known = params.models or {}
    used = {split_key(key)[0] for key in (*params.dictionary_hook_points, *params.hook_points)}
    unused = [alias for alias in known if alias not in used]
    if not unused or any(alias and alias not in known for alias in used):  # the latter is a fault of its own
        return None
    key = f"{unused[0]}:blocks.L.name"
    return f"no hook point is of {', '.join(unused)}; name one as {key} in dictionary.hook_points_in, or write null"


@rule("activations.path")
def a_named_store_is_of_one_model(params: Params) -> str | None:
    """An existing store has the hook points of one model."""
    others = [alias for alias in by_model(params.hook_points) if alias]
    if params.activations.path is None or not others:
        return None
    return f"names the store of one model, but hook points of {', '.join(others)} are wanted too; write null to generate them"


@rule("initializer.initialize_tc_with_mlp")
def mlp_initialisation_needs_a_transcoder(params: Params) -> str | None:
    """The MLP's responses are the decoder rows of a transcoder only."""
    if params.initializer.initialize_tc_with_mlp and not params.dictionary.is_transcoder:
        kind = params.dictionary.kind
        return f"needs a transcoder: this {kind} writes the hook point that it reads, so that there is no MLP between"
    return None


@rule("initializer.initialize_lorsa_with_mhsa")
def attention_is_imitated_by_attention(params: Params) -> str | None:
    """The model's attention is the start of a low-rank sparse attention on the same input and output."""
    if not params.initializer.initialize_lorsa_with_mhsa:
        return None
    if not params.dictionary.READS_SEQUENCES:
        return f"needs kind lorsa; kind {params.dictionary.kind} has no attention"
    for read, written in zip(params.dictionary.hooks_in, params.dictionary.hooks_out, strict=False):
        layer = layer_of(read)
        if read.split(".")[2] != "ln1" or written != f"blocks.{layer}.hook_attn_out":
            return f"needs blocks.L.ln1.hook_out to blocks.L.hook_attn_out of one layer L, not {read} to {written}"
    return None


@rule("initializer.initialize_lorsa_with_mhsa")
def attention_reads_one_scale(params: Params) -> str | None:
    """Queries and keys are divided by one factor; a norm that changes with the token or the batch has none."""
    norm = params.dictionary.norm_activation
    if not params.initializer.initialize_lorsa_with_mhsa or norm not in NORMS_OF_THE_DATA:
        return None
    return (
        f"norm_activation {norm} has no one factor to divide queries and keys by, so that scores would not be the model's; "
        "write dataset-wise, or switch it off"
    )


@rule("initializer.model_layer")
def attention_is_that_of_the_hook_points(params: Params) -> str | None:
    """The imitated attention is the one between the hook points."""
    layer = params.initializer.model_layer
    if layer is None or not params.initializer.initialize_lorsa_with_mhsa:
        return None
    for read in params.dictionary.hooks_in:
        if layer != layer_of(read):
            return f"the attention of layer {layer} is no function of '{read}'; write null or {layer_of(read)}"
    return None


@rule("initializer.model_layer")
def mlp_layer_is_known(params: Params) -> str | None:
    """The MLP's layer is stated, or both hook points are of one layer."""
    if not params.initializer.initialize_tc_with_mlp or params.initializer.model_layer is not None:
        return None
    for pair in zip(params.dictionary.hooks_in, params.dictionary.hooks_out, strict=False):
        if len({layer_of(hook) for hook in pair}) > 1:
            return f"is null and cannot be derived: {' and '.join(pair)} are of different layers; state the layer of the MLP"
    return None


@rule("initializer.model_layer")
def mlp_reads_what_the_dictionary_reads(params: Params) -> str | None:
    """The MLP is a function of its own layer's ln2 only."""
    if not params.initializer.initialize_tc_with_mlp or not params.dictionary.is_transcoder:
        return None
    layer = params.initializer.model_layer
    for read in params.dictionary.hooks_in:
        if not re.fullmatch(r"blocks\.\d+\.ln2\.(hook_out|hook_normalized)", read):
            at = layer_of(read) if layer is None else layer
            return f"no MLP is a function of '{read}'; read blocks.{at}.ln2.hook_out, or switch initialize_tc_with_mlp off"
        if layer is not None and layer != layer_of(read):
            return f"the MLP of layer {layer} is no function of '{read}'; write null or {layer_of(read)}"
    return None


@rule("initializer.d_active_subspace")
def subspace_fits_the_model(params: Params) -> str | None:
    """No more directions than dimensions."""
    rank, width = params.initializer.d_active_subspace, params.dictionary.d_model
    if rank is not None and width is not None and rank > width:
        return f"{rank} directions do not fit in dictionary.d_model {width}"
    head = params.dictionary.head_width if params.initializer.initialize_lorsa_with_mhsa else None
    if rank is not None and head is not None and rank > head:
        return f"{rank} directions of each head do not fit in dictionary.d_qk_head {head}"
    return None


@rule("trainer.initial_k")
def k_starts_above_its_end(params: Params) -> str | None:
    """The k schedule falls from initial_k to top_k."""
    first, dictionary = params.trainer.initial_k, params.dictionary
    if first is None:
        return None
    if not dictionary.is_topk_family:
        return f"only the topk family has a k to schedule; dictionary.act_fn is {dictionary.act_fn}; write null"
    if first < dictionary.top_k:
        return f"{first} is below dictionary.top_k {dictionary.top_k}; the schedule goes down to top_k"
    if dictionary.d_sae is not None and first > dictionary.d_sae:
        return f"{first} is more than the dictionary's {dictionary.d_sae} features"
    return None


@rule("trainer.total_training_tokens")
def at_least_one_step(params: Params) -> str | None:
    """T = total_training_tokens // tokens of a batch is at least 1."""
    if params.total_steps > 0:
        return None
    return (
        f"{params.trainer.total_training_tokens} tokens are less than one batch "
        f"of {params.activations.tokens_per_batch} (activations.batch_size)"
    )


@rule("trainer.lr_warm_up_steps")
def warm_up_ends_before_the_run(params: Params) -> str | None:
    """The learning rate that is asked for is reached, and there are steps to spread the rest of the schedule over."""
    trainer, total = params.trainer, params.total_steps
    if trainer.lr_scheduler_name not in WARMS_UP or total < 1:
        return None
    warm_up = resolve_steps(trainer.lr_warm_up_steps, total)
    if warm_up < total:
        return None
    return f"a warm-up of {warm_up} steps leaves none of the {total} to {trainer.lr_scheduler_name}; shorten it"


@rule("trainer.lr_cool_down_steps")
def cool_down_begins_after_the_warm_up(params: Params) -> str | None:
    """The learning rate that is asked for is reached where a schedule both warms up and cools down."""
    trainer, total = params.trainer, params.total_steps
    if trainer.lr_scheduler_name != "constantwithwarmup" or total < 1:
        return None
    warm_up, cool_down = (resolve_steps(steps, total) for steps in (trainer.lr_warm_up_steps, trainer.lr_cool_down_steps))
    if warm_up >= total or warm_up + cool_down <= total:  # the former is a fault of its own
        return None
    return (
        f"a warm-up of {warm_up} steps (lr_warm_up_steps) and a cool-down of {cool_down} do not fit in the {total} of the run: "
        "trainer.lr would not be reached; shorten one of them"
    )


@rule("trainer.amp_dtype")
def amp_computes_in_less(params: Params) -> str | None:
    """Autocast leaves float64 as it is."""
    amp, dtype = params.trainer.amp_dtype, params.dictionary.dtype
    if dtype != "float64" or amp == "float32":
        return None
    return f"{amp} has no effect on weights of dictionary.dtype float64, which compute in float64; write float32"


@rule("trainer.gradient_accumulation_steps")
def batch_splits_evenly(params: Params) -> str | None:
    """A step's batch is split in equal parts."""
    parts, size = params.trainer.gradient_accumulation_steps, params.activations.batch_size
    return f"activations.batch_size {size} does not split into {parts} equal parts" if size % parts else None


@rule("fold.mode")
def norm_can_be_folded(params: Params) -> str | None:
    """A norm that changes with the token or the batch is no constant to fold."""
    norm = params.dictionary.norm_activation
    if params.fold.mode == "fold" and norm in NORMS_OF_THE_DATA:
        return (
            f"norm_activation {norm} cannot be folded into weights; set fold.mode to keep (the inference "
            "dictionary then carries its run-time norm), or dictionary.norm_activation to dataset-wise"
        )
    return None


@rule("fold.convert_topk_to_jumprelu")
def only_topk_is_converted(params: Params) -> str | None:
    """relu and jumprelu have no k."""
    if params.fold.convert_topk_to_jumprelu and not params.dictionary.is_topk_family:
        return f"there is no top-k gate to convert; dictionary.act_fn is {params.dictionary.act_fn}"
    return None


@rule("fold.calibration_tokens")
def calibration_leaves_training_rows(params: Params) -> str | None:
    """Calibration rows are the last of the store; at least one batch must remain before them."""
    fold, activations = params.fold, params.activations
    if activations.tokens_per_batch > activations.total_tokens:
        return None  # the fault is the batch size
    needed = params.dictionary.is_batch_dependent or fold.convert_topk_to_jumprelu or steers_thresholds(params)
    if needed and fold.calibration_tokens < activations.tokens_per_batch:
        return (
            f"the threshold of the inference form is measured on whole batches: {fold.calibration_tokens} is less "
            f"than one of {activations.tokens_per_batch} tokens"
        )
    rest = activations.total_tokens - fold.calibration_tokens
    if rest < activations.tokens_per_batch:
        return (
            f"{fold.calibration_tokens} of activations.total_tokens {activations.total_tokens} leave "
            f"{max(rest, 0)} tokens to train on, less than a batch of {activations.tokens_per_batch}"
        )
    return None


@rule("activations.target")
def contexts_stay_whole_for_attention(params: Params) -> str | None:
    """Attention needs the tokens before a token."""
    if params.dictionary.READS_SEQUENCES and params.activations.target != "activations-2d":
        return f"kind {params.dictionary.kind} reads whole contexts; write activations-2d"
    return None


@rule("activations.context_size")
def contexts_fit_the_attention(params: Params) -> str | None:
    """No context is longer than the dictionary takes."""
    most, size = params.dictionary.max_context, params.activations.context_size
    if most is not None and most < size:
        return f"{size} tokens are more than the {most} that the dictionary takes (dictionary.n_ctx); raise that or lower this"
    return None


@rule("initializer.cross_layer_decoders")
def cross_layer_blocks_are_there(params: Params) -> str | None:
    """Only a cross-layer transcoder writes later layers."""
    if params.initializer.cross_layer_decoders != "drawn" and not params.dictionary.HAS_LAYERS:
        return f"kind {params.dictionary.kind} writes no other layers; write drawn"
    return None


@rule("initializer.decoder_uniform_bound")
def decoder_is_drawn_by_its_bound(params: Params) -> str | None:
    """Cross-layer transcoders and low-rank sparse attention have a draw of their own, and activations are no draw."""
    start, value = params.initializer, params.initializer.decoder_uniform_bound
    if value == 1.0 or not start.initialize_W_D_with_activations or not params.dictionary.DRAWN_BY_BOUNDS:
        return _bound_that_is_not_used(params, value)
    return (
        f"{value} has no effect: decoder rows are activations (initialize_W_D_with_activations); write 1.0, or switch that off"
    )


@rule("initializer.encoder_uniform_bound")
def encoder_is_drawn_by_its_bound(params: Params) -> str | None:
    """The same of the encoder, and a transpose is no draw; a transcoder's is one where its widths differ."""
    start, value = params.initializer, params.initializer.encoder_uniform_bound
    may_be_drawn = params.dictionary.is_transcoder and not start.initialize_W_D_with_activations
    transposed = start.init_encoder_with_decoder_transpose and not may_be_drawn
    if value == 1.0 or not transposed or not params.dictionary.DRAWN_BY_BOUNDS:
        return _bound_that_is_not_used(params, value)
    return f"{value} has no effect: init_encoder_with_decoder_transpose makes the encoder; write 1.0, or switch that off"


@rule("initializer.init_encoder_with_decoder_transpose_factor")
def encoder_is_made_of_the_decoder(params: Params) -> str | None:
    """Their encoder is no transpose, unless decoder rows come from activations, whose inputs the factor scales."""
    start, value = params.initializer, params.initializer.init_encoder_with_decoder_transpose_factor
    if value != 1.0 and not start.init_encoder_with_decoder_transpose:
        return f"{value} is the factor of init_encoder_with_decoder_transpose, which is false; write 1.0 or switch that on"
    return None if start.initialize_W_D_with_activations else _bound_that_is_not_used(params, value)


def _bound_that_is_not_used(params: Params, value: float) -> str | None:
    if params.dictionary.DRAWN_BY_BOUNDS or value == 1.0:
        return None
    return f"kind {params.dictionary.kind} has a draw of its own, which takes no such number; write 1.0, got {value}"


@rule("initializer.bias_init_method")
def bias_is_there(params: Params) -> str | None:
    """Without decoder bias there is none to start."""
    method = params.initializer.bias_init_method
    if method == "all_zero" or params.dictionary.use_decoder_bias:
        return None
    return f"{method} sets the decoder bias, and dictionary.use_decoder_bias is false; write all_zero"


@rule("initializer.initialize_tc_with_mlp")
def mlp_writes_what_the_dictionary_writes(params: Params) -> str | None:
    """Responses of an MLP are rows of a dictionary that writes its output."""
    if not params.initializer.initialize_tc_with_mlp or not params.dictionary.is_transcoder:
        return None
    for hook in params.dictionary.hooks_out:
        if not hook.endswith(".hook_mlp_out"):
            return f"the MLP's responses are no rows for '{hook}'; write blocks.L.hook_mlp_out, or switch it off"
    return None


@rule("evaluation.pca_rank")
def pca_fits_the_model(params: Params) -> str | None:
    """No more principal directions than dimensions."""
    rank, width = params.evaluation.pca_rank, params.dictionary.d_model
    if rank is not None and width is not None and rank > width:
        return f"{rank} is more than dictionary.d_model {width}"
    return None


def layer_of(hook_point: str) -> int | None:
    """The layer in a hook point's name: 2 of blocks.2.hook_resid_post."""
    match = re.match(r"blocks\.(\d+)\.", hook_point)
    return int(match.group(1)) if match else None


RULES: tuple[Rule, ...] = (
    *(check for check in list(globals().values()) if hasattr(check, "rule_key")),
    *RULES_OF_LOSSES,
)
