"""What a later stage would refuse and an earlier one can know; docs/refusals.md has every refusal and where it is made.

Four times something becomes known:

    parameters   with the parameter file and the configurations of models: stages inputs (which every `dvc repro` runs) and
                 tokenize, before the text is read
    machine      disk, memory, devices, tokenizers of further models: stage tokenize, before the text is read
    text         what the text holds, where it was counted, or has surely too little by the size of its files: stages.plan, and
                 tokenize where the size leaves a doubt
    tokens       how many contexts the text gives: at the end of tokenize, and at the beginning of each stage that is long,
                 since a changed parameter need not run tokenize again

A check is one function of a planned run, declared in CHECKS with the stage that would meet the fault otherwise. All faults are
told at once, one line each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from pipeline.errors import DataError, ParamsError, PipelineError, of_member
from pipeline.hook_keys import MAIN
from pipeline.models_fit import check_models_fit
from pipeline.params.choices import HUGGINGFACE
from pipeline.planning.run import Run
from pipeline.planning.sources import sources_of

if TYPE_CHECKING:
    from pipeline.params.schema import Params
    from pipeline.planning.text import TextSample

PARAMETERS, MACHINE, TOKENS = "parameters", "machine", "tokens"
DICTIONARY = "${dictionary.name}"  # in dvc.yaml
FILES = (".json", ".jsonl", ".safetensors")  # outputs that are no directories
LARGEST_CHUNK = 32_768  # rows (pipeline.activations.schema.BLOCK_ROWS), without importing torch


class Check(NamedTuple):
    """One check.

    Attributes:
        name: of the refusal, as in docs/refusals.md.
        stage: that meets it where nothing has looked before.
        known: when it is known: with the parameters, on the machine, with the tokens.
        check: raises a PipelineError.
    """

    name: str
    stage: str
    known: str
    check: Callable[[Run, Path], None]


def refuse(params: Params, *known: str, tokens: str | Path = "data/tokens.zarr") -> None:
    """Make every check of what is known now.

    Args:
        params: all parameters.
        known: some of PARAMETERS, MACHINE, TOKENS; with TOKENS the token store is there, else nothing is checked.
        tokens: the token store.

    Raises:
        PipelineError: every fault, a line each.
    """
    faults: list[str] = []
    if params.activations.path is None:
        faults += _faults(lambda: check_models_fit(params))
    found: list[Run] = []
    faults += _faults(lambda: found.append(Run(params, sources_of(params))))
    if found and not faults:
        for check in CHECKS:
            if check.known in known:
                faults += _faults(functools.partial(check.check, found[0], Path(tokens)))
    if faults:
        raise DataError(_once(faults))


def _once(faults: Iterable[str]) -> list[str]:
    """Each fault once; of one that is told of a member of the sweep and of the run, that of the run."""
    found = list(dict.fromkeys(faults))
    return [fault for fault in found if not (fault.startswith("sweep.") and fault.partition(": ")[2] in found)]


def refuse_by_text(run: Run, text: TextSample) -> None:
    """Refuse what the text surely has too little for, to train on or to evaluate.

    Args:
        run: what is planned.
        text: what is known of its text.

    Raises:
        DataError: every fault, a line each.
    """
    if text.most is None:
        return
    acts, dataset = run.params.activations, run.params.dataset
    # A context has one token that is of no document where it starts with BOS.
    room = run.context_size / max(run.context_size - 1, 1)
    counted = "it holds" if text.whole else "by the size of its files it holds about"
    faults, wanted = [], run.stored_tokens
    most = text.trained if text.whole else text.most
    if wanted > most * room and all(source.stop is None for source in text.sources.values()):
        there = most if text.whole else text.there * (1.0 - dataset.eval_fraction) if text.there is not None else most
        faults.append(
            f"too little text: activations.total_tokens is {wanted:,}, and {counted} {there:,.0f} tokens to train on, beside "
            "those that are held out; lower activations.total_tokens or give more text"
        )
    evaluated = run.params.evaluation.tokens
    if evaluated is not None:
        found = text.held_out_of(acts.total_tokens, dataset.eval_fraction)
        there = found.tokens * room
        if found.deviation == 0.0 and math.ceil(evaluated / run.context_size) * run.context_size > there:
            faults.append(
                f"evaluation.tokens asks for {evaluated:,} held-out tokens, and the text gives {found.tokens:,.0f} in "
                f"{found.extent.words()}; ask for fewer, or raise dataset.eval_fraction"
            )
    if faults:
        raise DataError(faults)


def refuse_by_tokens(params: Params, tokens: str | Path) -> None:
    """The checks of TOKENS alone, where the token store is there; models need not be.

    Raises:
        PipelineError: every fault, a line each.
    """
    from pipeline.corpus.tokens import open_tokens

    try:
        store = open_tokens(tokens)
    except DataError:
        return
    from pipeline.evaluation.split_tokens import contexts_asked_for

    contexts_asked_for(store.eval.n_contexts, store.eval.context_size, params.evaluation.tokens)


def _faults(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except PipelineError as error:
        return error.faults
    return []


def _raise(faults: Iterable[str]) -> None:
    if found := list(faults):
        raise ParamsError(found)


# With the parameters -----------------------------------------------------------------------------------------------------


def context_fits_the_models(run: Run, tokens: Path) -> None:
    """No context is longer than a model has positions."""
    size = run.context_size
    _raise(
        f"activations.context_size: contexts of {size:,} tokens are longer than the {source.max_context:,} positions of "
        f"{source.name}; write at most {source.max_context:,}"
        for source in run.sources.models.values()
        if source.max_context is not None and size > source.max_context
    )


def tracking_is_known(run: Run, tokens: Path) -> None:
    """MLflow has a store of this kind."""
    from pipeline.tracking.store_uri import tracking_uri

    if run.params.tracking.enabled:
        tracking_uri(run.params.tracking.tracking_uri)


def rows_are_left_to_train_on(run: Run, tokens: Path) -> None:
    """What calibration leaves holds a batch, also where it ends with a chunk."""
    acts = run.params.activations
    if acts.path is not None or acts.tokens_per_row > 1:
        return  # the store has rows of its own; how many contexts there are is known with the tokens
    kept_back = run.params.fold.calibration_tokens
    if run.least_rows - kept_back >= acts.batch_size + LARGEST_CHUNK:
        return
    _batch_of(run)


def _batch_of(run: Run) -> None:
    from pipeline.activations.batches import too_few_rows

    first, stop = run.training_rows
    if stop - first < run.params.activations.batch_size:
        raise too_few_rows("activations", run.params.activations.batch_size, stop - first)


def pca_rank_is_kept(run: Run, tokens: Path) -> None:
    """The norm pass keeps as many directions as the baseline is asked to have."""
    rank = run.params.evaluation.pca_rank
    if rank is None:
        return
    from pipeline.evaluation.baselines import check_rank
    from pipeline.norms.statistics import MAX_EIGENVECTORS

    for name, own in run.params.members.items():
        with of_member(name):
            for hook in own.dictionary.hooks_out:
                width = run.sources.widths[hook]
                check_rank(rank, hook, width, min(width, MAX_EIGENVECTORS))


def _each_member(run: Run, check: Callable[[str, Params], object]) -> None:
    """Make a check of each member, and tell all faults with the members' names."""
    faults: list[str] = []
    for name, own in run.params.members.items():
        try:
            with of_member(name):
                check(name, own)
        except PipelineError as error:
            faults += error.faults
    _raise(faults)


def features_can_be_dealt(run: Run, tokens: Path) -> None:
    """Each of the processes that share the features has as many, of a kind that says which of its weights are of features."""
    size = run.params.distributed.model_parallel_size
    if size == 1:
        return
    from pipeline.dictionaries.sharding import check_divisible

    _each_member(run, lambda name, _: check_divisible(run.dictionaries[name].config, type(run.dictionaries[name]), size))


def stated_store_fits(run: Run, tokens: Path) -> None:
    """The store of activations.path is there, finished, of this kind and this model's widths, and holds a batch."""
    acts = run.params.activations
    stated = acts.path
    if stated is None:
        return
    from pipeline.activations.batches import too_few_rows
    from pipeline.activations.fingerprint import GenerationSettings
    from pipeline.activations.for_params import open_stated_store
    from pipeline.activations.schema import training_rows

    store = open_stated_store(stated, run.params.hook_points, GenerationSettings.from_params(run.params))
    _raise(
        f"activations.path: {store.path}: activations at {hook} are {store.width(hook)} wide, those of the language model "
        f"{run.sources.widths[hook]}, which evaluates the dictionary; give a store of this model, or null to generate"
        for hook in run.params.hook_points
        if store.width(hook) != run.sources.widths[hook]
    )
    first, stop = training_rows(store, run.params.fold.calibration_tokens)
    if stop - first < acts.batch_size:
        raise too_few_rows(f"activations.path: {store.path}", acts.batch_size, stop - first)


def attention_is_there(run: Run, tokens: Path) -> None:
    """The models can compute attention in the way that is stated, on the device and in the dtype that are."""
    model = run.params.model
    if model.attention in ("auto", "eager"):
        return
    from pipeline.lm.weights import check_attention

    for source in run.sources.models.values():
        check_attention(source, model.attention, model.dtype, model.device)


def placement_is_there(run: Run, tokens: Path) -> None:
    """The models can be dealt to devices and quantised in the way that is stated, with the packages that are here."""
    model = run.params.model
    if model.device_map is None and model.quantization is None:
        return
    from pipeline.lm.placement import check_placement

    for source in run.sources.models.values():
        check_placement(source, model.backend, model.device, model.device_map, model.quantization)


def weights_are_there(run: Run, tokens: Path) -> None:
    """A local model has weight files, whole ones, and none that may run code."""
    for source in run.sources.models.values():
        if source.is_local and source.gguf is None:  # a GGUF file is seen whole when its header is read
            source.check_weight_files()


def back_end_computes_the_models(run: Run, tokens: Path) -> None:
    """TransformerLens runs no model as another one."""
    if run.params.model.backend == HUGGINGFACE:
        return
    from pipeline.lm.families import check_bridge, is_known

    for source in run.sources.models.values():
        if is_known(source.model_type):
            check_bridge(source.declared, source.text_config, source.name)


# On the machine ----------------------------------------------------------------------------------------------------------


def devices_are_there(run: Run, tokens: Path) -> None:
    """The stated devices exist, and can do what the dictionary asks of them."""
    from pipeline.training.device import training_device
    from pipeline.training.kernels import check_kernels

    acts, model = run.params.activations, run.params.model
    device = training_device(model.device, "model.device")
    if acts.device is not None:
        device = training_device(acts.device, "activations.device")
    _each_member(run, lambda _, own: check_kernels(own.dictionary.use_triton_kernel, own.trainer.amp_dtype, device))


def models_can_be_computed(run: Run, tokens: Path) -> None:
    """The library that runs the models makes of each configuration, and of what a GGUF file says, the model that is meant."""
    from pipeline.lm.weights import check_computed

    for source in run.sources.models.values():
        check_computed(source)


def outputs_can_be_written(run: Run, tokens: Path) -> None:
    """What dvc.yaml says that later stages write can be written there, and checkpoints where they are kept."""
    from pipeline.command import check_output
    from pipeline.files import ensure_writable, root

    _raise(
        fault
        for path in _outputs(Path("dvc.yaml"), run.params.dictionary.name)
        for fault in _faults(functools.partial(check_output, path, directory=path.suffix not in FILES))
    )
    ensure_writable(root() / "data" / "checkpoints", "checkpoints")


def _outputs(file: Path, dictionary: str) -> list[Path]:
    """Outputs and metrics of all stages of a dvc.yaml; none where there is no such file, and each stage runs by itself."""
    if not file.is_file():
        return []
    found: list[Path] = []
    for stage in yaml.safe_load(file.read_text())["stages"].values():
        for each in (*stage.get("outs", ()), *stage.get("metrics", ())):
            found.append(Path((each if isinstance(each, str) else next(iter(each))).replace(DICTIONARY, dictionary)))
    return found


def start_fits(run: Run, tokens: Path) -> None:
    """The dictionary to start from is there, whole, and of the shape that is asked for."""
    if not any(own.initializer.from_dictionary for own in run.params.members.values()):
        return
    from pipeline.initialization.from_dictionary import check_start, read_start

    def fits(name: str, own: Params) -> None:
        if (place := own.initializer.from_dictionary) is not None:
            check_start(read_start(place), run.dictionaries[name].config, place)

    _each_member(run, fits)


def start_makes_sense(run: Run, tokens: Path) -> None:
    """The options of the initializer fit the dictionary's kind and widths."""
    from pipeline.initialization.compose import check

    def sensible(name: str, own: Params) -> None:
        if own.initializer.from_dictionary is None:
            check(run.dictionaries[name], own.initializer, has_model=True)

    _each_member(run, sensible)


def store_has_a_place(run: Run, tokens: Path) -> None:
    """The store can be written where it is to lie, and the disk has room for it.

    Whether it lies there already is not known before the text is tokenized; with other stores beside it the space is looked at
    by generate.
    """
    if run.live or run.params.activations.path is not None:
        return
    from pipeline.activations.remote import check_root, stated_url
    from pipeline.activations.schema import store_root
    from pipeline.files import ensure_free_space
    from pipeline.planning.disk import store_bytes

    place = store_root()
    if stated_url() is not None:
        check_root()
    elif not (place.is_dir() and any(entry.is_dir() for entry in place.iterdir())):
        ensure_free_space(place, store_bytes(run), "activations")


def memory_is_there(run: Run, tokens: Path) -> None:
    """Each large thing that a stage holds fits by itself; what does not fit together the stages refuse themselves."""
    from pipeline.memory import require_memory
    from pipeline.planning.stages import STAGES
    from pipeline.training.device import training_device

    try:
        device = training_device(run.params.activations.device or run.params.model.device)
    except ParamsError:
        return  # a fault by itself
    if device.type != "cpu":
        return  # what lies on which device is the stages' own matter
    needs = {need.what: need for stage in STAGES for need in stage.held(run)}
    _raise(fault for need in needs.values() for fault in _faults(functools.partial(require_memory, need)))


def tokenizers_are_one(run: Run, tokens: Path) -> None:
    """Further models read the main model's tokens."""
    if len(run.sources.models) == 1:
        return
    from pipeline.activations.for_params import other_tokenizer
    from pipeline.corpus.tokenization import tokenizer_info

    def digest(alias: str) -> str | None:
        source = run.sources.models[alias]
        return tokenizer_info(source.load_tokenizer(), source.name).digest if source.has_tokenizer else None

    main = digest(MAIN)
    for alias, source in run.sources.models.items():
        if alias != MAIN and digest(alias) != main:
            raise other_tokenizer(alias, source.name, run.params.model.model_name, tokens)


# With the tokens ---------------------------------------------------------------------------------------------------------


def held_out_tokens_are_there(run: Run, tokens: Path) -> None:
    """The held-out split has the tokens that are to be evaluated."""
    refuse_by_tokens(run.params, tokens)


def contexts_make_batches(run: Run, tokens: Path) -> None:
    """Of whole contexts there are enough for calibration, a batch, and a step of the loss through the language model."""
    from pipeline.activations.fingerprint import GenerationSettings
    from pipeline.activations.live import plan_live
    from pipeline.activations.plan import ContextTokens, plan_rows
    from pipeline.activations.schema import training_rows
    from pipeline.corpus.tokens import open_tokens
    from pipeline.planning.rows import PlannedRows
    from pipeline.shares import contexts_in_step
    from pipeline.training.model_loss import require_contexts

    acts, trainer = run.params.activations, run.params.trainer
    flat = acts.target == "activations-1d"
    if acts.path is not None or (flat and trainer.model_loss is None):
        return
    store, settings = open_tokens(tokens), GenerationSettings.from_params(run.params)
    ignored = store.ignore_token_ids if settings.ignore_token_ids is None else settings.ignore_token_ids
    contexts = ContextTokens(store.train, ignored, settings.ignore_positions)
    plan = (plan_live if run.live else plan_rows)(contexts, settings, run.rows.chunk_rows)
    rows = PlannedRows(acts.target, acts.context_size, plan.n_rows, run.rows.chunk_rows)
    first, stop = training_rows(rows, run.params.fold.calibration_tokens)
    if stop - first < acts.batch_size:
        from pipeline.activations.batches import too_few_rows

        raise too_few_rows("activations", acts.batch_size, stop - first)
    if trainer.model_loss is not None:
        wanted = contexts_in_step(trainer.model_loss_batches, acts.tokens_per_batch, acts.context_size)
        require_contexts(str(tokens), trainer.model_loss, wanted, len(plan.contexts_within((first, stop))))


CHECKS = (
    Check("context longer than the model's", "generate", PARAMETERS, context_fits_the_models),
    Check("weight files missing, damaged or pickled", "generate", PARAMETERS, weights_are_there),
    Check("back end that would run another model", "generate", PARAMETERS, back_end_computes_the_models),
    Check("attention that the model or device has not", "generate", PARAMETERS, attention_is_there),
    Check("device map or quantisation that cannot be had", "generate", PARAMETERS, placement_is_there),
    Check("store of activations.path", "generate", PARAMETERS, stated_store_fits),
    Check("features that cannot be dealt to processes", "train", PARAMETERS, features_can_be_dealt),
    Check("batch larger than the whole chunks that are left", "train", PARAMETERS, rows_are_left_to_train_on),
    Check("rank of PCA", "evaluate", PARAMETERS, pca_rank_is_kept),
    Check("tracking store", "train", PARAMETERS, tracking_is_known),
    Check("devices and kernels", "train", MACHINE, devices_are_there),
    Check("model that the library computes otherwise", "generate", MACHINE, models_can_be_computed),
    Check("places of outputs", "each stage", MACHINE, outputs_can_be_written),
    Check("dictionary to start from", "initialize", MACHINE, start_fits),
    Check("options of the start", "initialize", MACHINE, start_makes_sense),
    Check("place and disk of the store", "generate", MACHINE, store_has_a_place),
    Check("memory", "each stage", MACHINE, memory_is_there),
    Check("tokenizers of further models", "generate", MACHINE, tokenizers_are_one),
    Check("held-out tokens", "evaluate", TOKENS, held_out_tokens_are_there),
    Check("whole contexts", "train", TOKENS, contexts_make_batches),
)
