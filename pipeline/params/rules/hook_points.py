"""What a parameter file's hook points must be: those of the store, of models that are named, of an attention."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.errors import unknown_name
from pipeline.hook_keys import ATTENTION_OUTPUT, MODULE, by_model, module_of, split_key, written_before_read
from pipeline.params.choices import HUGGINGFACE
from pipeline.params.section import across

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.activations import ActivationsParams
    from pipeline.params.sections.model import ModelParams, NamedModelParams

ATTENTION_INPUT = re.compile(r"(blocks\.\d+)\.ln1\.(?:hook_out|hook_normalized)")


def used_by(dictionary: DictionaryFields) -> tuple[str, ...]:
    """The hook points that a dictionary reads or writes, each once."""
    return tuple(dict.fromkeys((*dictionary.hooks_in, *dictionary.hooks_out)))


def stored(dictionary: DictionaryFields, activations: ActivationsParams) -> tuple[str, ...]:
    """The hook points to store: activations.hook_points, or the dictionary's when that is null."""
    return activations.hook_points or used_by(dictionary)


@across("dictionary.hook_point_out")
def attention_writes_its_output(dictionary: DictionaryFields) -> str | None:
    """A low-rank sparse attention stands where the model's attention does."""
    if not dictionary.READS_SEQUENCES:
        return None
    if not dictionary.hooks_in:
        return (
            "kind lorsa reads hook_point_in and writes hook_point_out; write blocks.L.ln1.hook_out there and "
            "blocks.L.hook_attn_out here"
        )
    (written,), read = dictionary.hooks_out, ATTENTION_INPUT.fullmatch(dictionary.hooks_in[0])
    if (
        read is None
        or not dictionary.is_transcoder
        or written_before_read(dictionary.hooks_in, dictionary.hooks_out)
        or (ATTENTION_OUTPUT.fullmatch(written) and written.startswith(f"{read[1]}."))
    ):
        return None  # what is read is the fault, or that it is read too late
    return f"'{written}' is not what the attention that reads {read[0]} writes; write {read[1]}.hook_attn_out"


@across("dictionary.hook_point_in")
def attention_reads_its_input(dictionary: DictionaryFields) -> str | None:
    """And reads what that reads."""
    if not dictionary.READS_SEQUENCES or not dictionary.hooks_in or ATTENTION_INPUT.fullmatch(dictionary.hooks_in[0]):
        return None
    read = dictionary.hooks_in[0]
    block = re.match(r"blocks\.\d+", read)
    start = block[0] if block else "blocks.L"
    whose = "is what the MLP reads" if ".ln2." in read else "is not what attention reads"
    return f"'{read}' {whose}; write {start}.ln1.hook_out (or {start}.ln1.hook_normalized)"


@across("activations.hook_points")
def store_has_the_dictionarys_hook_points(dictionary: DictionaryFields, activations: ActivationsParams) -> str | None:
    """A stated list of hook points must hold those of the dictionary."""
    stated = activations.hook_points
    if not stated:
        return None
    absent = [hook for hook in used_by(dictionary) if hook not in stated]
    if not absent:
        return None
    return (
        f"the dictionary needs {', '.join(absent)}, which this list lacks; correct a misspelt name in the dictionary, "
        "add it here, or write null to take the dictionary's hook points"
    )


@across("models")
def every_alias_is_a_model(
    dictionary: DictionaryFields, activations: ActivationsParams, models: Mapping[str, NamedModelParams] | None
) -> str | None:
    """A hook point of another model names one of `models`."""
    known = models or {}
    for key in dict.fromkeys((*known, *used_by(dictionary), *stored(dictionary, activations))):
        if key == MODULE or (key.startswith(f"{MODULE}:") and module_of(key) is None):
            return f"'{key}': no model is called {MODULE}, which begins {MODULE}:path:output; give it another name"
        alias, _ = split_key(key)
        if alias and alias not in known:
            return f"hook point '{key}': {unknown_name('model', alias, known)}; state its name: {alias}: {{model_name: ...}}"
    return None


def every_model_is_used(hook_points: Iterable[str], models: Mapping[str, NamedModelParams] | None) -> str | None:
    """A model that none of the hook points (stored, or a dictionary's) names would be left out without a word."""
    known = models or {}
    used = {split_key(key)[0] for key in hook_points}
    unused = [alias for alias in known if alias not in used]
    if not unused or any(alias and alias not in known for alias in used):  # the latter is a fault of its own
        return None
    key = f"{unused[0]}:blocks.L.name"
    return f"no hook point is of {', '.join(unused)}; name one as {key} in dictionary.hook_points_in, or write null"


@across("model.backend")
def modules_are_named_in_transformers(
    dictionary: DictionaryFields, activations: ActivationsParams, model: ModelParams
) -> str | None:
    """TransformerLens has modules of its own."""
    if model.backend == HUGGINGFACE:
        return None
    named = [key for key in (*used_by(dictionary), *stored(dictionary, activations)) if module_of(split_key(key)[1])]
    return f"{model.backend} does not know the module of '{named[0]}'; write {HUGGINGFACE}" if named else None


@across("activations.path")
def a_named_store_is_of_one_model(dictionary: DictionaryFields, activations: ActivationsParams) -> str | None:
    """An existing store has the hook points of one model."""
    others = [alias for alias in by_model(stored(dictionary, activations)) if alias]
    if activations.path is None or not others:
        return None
    return f"names the store of one model, but hook points of {', '.join(others)} are wanted too; write null to generate them"
