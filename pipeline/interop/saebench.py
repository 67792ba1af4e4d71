"""A dictionary of ours as the object that SAEBench's evaluations take (saebench_object.py), and as files of it.

Decoder rows have length 1 where the gate allows it, as its evaluations expect.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.errors import ParamsError
from pipeline.files import atomic_directory
from pipeline.interop import saebench_object as standalone
from pipeline.interop.hook_names import layer_and_site
from pipeline.interop.plain import PlainDictionary, unit_rows
from pipeline.interop.saebench_object import SAEBenchConfig, SAEBenchObject

MODULE = "scopeline_sae.py"  # the class, beside the weights


def saebench_object(plain: PlainDictionary) -> SAEBenchObject:
    """The object of an autoencoder.

    Raises:
        ParamsError: another kind, or a hook point outside of the model's blocks.
    """
    if plain.kind != "sae":
        raise ParamsError(f"saebench: holds autoencoders of one hook point alone, got a {plain.kind}")
    unit = unit_rows(plain)
    place, about = layer_and_site(unit.hooks_in[0]), unit.about
    cfg = SAEBenchConfig(
        model_name=str(about.get("model_name", "")),
        d_in=unit.d_in,
        d_sae=unit.d_sae,
        hook_layer=place[0] if place else 0,
        hook_name=unit.hooks_in[0],
        architecture={"relu": "standard"}.get(unit.gate, unit.gate),
        context_size=about.get("context_size"),
        prepend_bos=bool(about.get("prepend_bos", True)),
        training_tokens=int(about.get("training_tokens", -1)),
        dataset_path=str(about.get("dataset_path", "")),
        activation_fn_str="topk" if unit.gate == "topk" else "relu",
        activation_fn_kwargs={"k": unit.k} if unit.gate == "topk" else {},
    )
    return SAEBenchObject({**unit.tensors, "threshold": unit.thresholds}, cfg)


def write_object(made: SAEBenchObject, directory: str | Path) -> None:
    """Write it with its class, so that an environment without Scopeline loads it; what lay there is replaced."""
    with atomic_directory(directory) as folder:
        made.save(folder)
        shutil.copy(standalone.__file__, folder / MODULE)
