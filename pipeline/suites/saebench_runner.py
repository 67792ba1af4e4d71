"""Runs one of SAEBench's evaluations; a script for SAEBench's own environment, which has no Scopeline.

    PYTHON saebench_runner.py job.json core

The working directory is the run's folder. Exit code 3 and a line `refused: ...` on standard error: something that the
evaluation needs is not to be had. Its result is where SAEBench writes it, below eval_results/.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEED = 42  # SAEBench's own
REFUSED = 3


class Refused(Exception):
    """What the evaluation needs is not to be had."""


def why(error: BaseException) -> str:
    """In words, why the hub does not give something."""
    names = {each.__name__ for each in type(error).__mro__}
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0") else ""
    if "GatedRepoError" in names:
        return "is gated: ask for access on its page, then `hf auth login`"
    if "RepositoryNotFoundError" in names:
        return "does not exist on the hub, or is private: `hf auth login`"
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "ConnectTimeout"}:
        return f"cannot be reached and is not in the cache{offline}"
    return f"cannot be had ({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''})"


def check_data_set(name: str) -> None:
    """Refuse a data set that the hub does not give."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    try:
        hf_hub_download(name, "README.md", repo_type="dataset")
    except LocalEntryNotFoundError as error:
        raise Refused(f"data set {name} {why(error)}") from None
    except EntryNotFoundError:
        return  # it is there, without this file
    except Exception as error:
        raise Refused(f"data set {name} {why(error)}") from None


def check_model(name: str, hugging_face: bool) -> None:
    """Refuse a model that is not to be had, or that this evaluation does not know."""
    import transformer_lens.loading_from_pretrained as loading
    from huggingface_hub import hf_hub_download

    if not Path(name, "config.json").is_file():
        try:
            official = loading.get_official_model_name(name)
        except ValueError:
            raise Refused(f"model {name}: TransformerLens knows no model of this name") from None
        try:
            hf_hub_download(official, "config.json")
        except Exception as error:
            raise Refused(f"model {official} {why(error)}") from None
    if hugging_face:
        from sae_bench.evals.ravel.main import LLM_NAME_MAP

        if name not in LLM_NAME_MAP:
            known = ", ".join(LLM_NAME_MAP)
            raise Refused(f"model {name}: this evaluation of SAEBench knows {known} alone")


def accept_directories() -> None:
    """Let a model and a text be directories.

    All of TransformerLens's loader takes a model's, but for the check of the name that comes first. SAELens asks the hub which
    tokenizer has made a text of token ids; of a directory nobody asks.
    """
    import sae_lens.training.activations_store as store
    import transformer_lens.loading_from_pretrained as loading

    by_name, by_hub = loading.get_official_model_name, store.validate_pretokenized_dataset_tokenizer

    def official(model_name: str) -> str:
        return model_name if Path(model_name, "config.json").is_file() else by_name(model_name)

    def validate(dataset_path: str, model_tokenizer: Any) -> None:
        if not Path(dataset_path).is_dir():
            by_hub(dataset_path, model_tokenizer)

    loading.get_official_model_name = official
    store.validate_pretokenized_dataset_tokenizer = validate


def run_core(job: Mapping[str, Any], selected: list[Any]) -> None:
    """Its own runner takes no configuration."""
    import sae_bench.evals.core.main as core

    core.multiple_evals(
        selected_saes=selected,
        n_eval_reconstruction_batches=job["reconstruction_batches"],
        n_eval_sparsity_variance_batches=job["sparsity_batches"],
        eval_batch_size_prompts=job["batch_prompts"],
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset=job["text"],
        context_size=job["context_size"],
        output_folder="eval_results/core",
        verbose=True,
        dtype=job["dtype"],
        device=job["device"],
        force_rerun=True,
    )


def module_and_class(name: str) -> tuple[Any, Any]:
    """The evaluation's module, and the class of its configuration."""
    if name == "absorption":
        import sae_bench.evals.absorption.main as absorption

        return absorption, absorption.AbsorptionEvalConfig
    if name == "autointerp":
        import sae_bench.evals.autointerp.main as autointerp

        return autointerp, autointerp.AutoInterpEvalConfig
    if name == "ravel":
        import sae_bench.evals.ravel.main as ravel

        return ravel, ravel.RAVELEvalConfig
    if name in ("scr", "tpp"):
        import sae_bench.evals.scr_and_tpp.main as scr_and_tpp

        return scr_and_tpp, scr_and_tpp.ScrAndTppEvalConfig
    if name == "sparse_probing":
        import sae_bench.evals.sparse_probing.main as sparse_probing

        return sparse_probing, sparse_probing.SparseProbingEvalConfig
    if name == "unlearning":
        import sae_bench.evals.unlearning.main as unlearning

        return unlearning, unlearning.UnlearningEvalConfig
    raise Refused(f"this runner has no evaluation {name}")


def configuration(name: str, job: Mapping[str, Any]) -> tuple[Any, Any]:
    """The evaluation's module and its configuration."""
    module, config_class = module_and_class(name)
    fields: dict[str, Any] = {
        "model_name": job["model"],
        "random_seed": SEED,
        "llm_batch_size": job["llm_batch_size"],
        "llm_dtype": job["dtype"],
    }
    if name in ("scr", "tpp"):
        fields["perform_scr"] = name == "scr"
    if name == "autointerp":
        fields |= {"dataset_name": job["text"], "llm_context_size": job["context_size"]}
        fields |= {key: job[key] for key in ("n_latents", "total_tokens") if job.get(key) is not None}
    return module, config_class(**fields)


def run_other(name: str, job: Mapping[str, Any], selected: list[Any]) -> None:
    """All but core."""
    module, config = configuration(name, job)
    output = "eval_results" if name in ("scr", "tpp") else f"eval_results/{name}"
    arguments: list[Any] = [config, selected, job["device"]]
    if name == "autointerp":
        os.environ["OPENAI_BASE_URL"] = job["endpoint"]
        arguments.append(os.environ.get(job["key_variable"]) or "none")
    module.run_eval(*arguments, output, force_rerun=True)


def main(job_file: str, name: str) -> None:
    """Check what the evaluation needs, then run it."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    needs = job["needs"][name]
    check_model(job["model"], needs["hugging_face"])
    for data_set in needs["data_sets"]:
        check_data_set(data_set)
    if needs["reads_text"] and not Path(job["text"]).is_dir():
        check_data_set(job["text"])
    if needs["file"] and not Path(needs["file"]).is_file():
        raise Refused(f"it needs the file {Path(needs['file']).absolute()}, which SAEBench does not come with (gated)")
    accept_directories()
    sys.path.insert(0, str(Path("object").absolute()))
    import scopeline_sae

    sae = scopeline_sae.load("object")
    sae.cfg.model_name, sae.cfg.dtype, sae.cfg.device = job["model"], job["dtype"], job["device"]
    import torch

    sae = sae.to(device=job["device"], dtype=getattr(torch, job["dtype"]))
    selected = [(job["name"], sae)]
    Path("eval_results", name).mkdir(parents=True, exist_ok=True)
    if name == "core":
        run_core(job, selected)
    else:
        run_other(name, job, selected)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except Refused as error:
        sys.stderr.write(f"refused: {error}\n")
        sys.exit(REFUSED)
