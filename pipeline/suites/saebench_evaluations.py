"""SAEBench's evaluations by its names, and what each needs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ParamsError, unknown_name


@dataclass(frozen=True)
class Evaluation:
    """One of SAEBench's evaluations.

    Attributes:
        about: what it measures.
        data_sets: that it reads from the hub.
        reads_text: whether it reads plain text, which --text names.
        hugging_face: whether it loads the model by transformers, of the two architectures that it knows.
        judge: whether it asks a chat model at an OpenAI-compatible endpoint.
        file: that it wants in the folder of the run; "": none.
    """

    about: str
    data_sets: tuple[str, ...] = ()
    reads_text: bool = False
    hugging_face: bool = False
    judge: bool = False
    file: str = ""


_BIOS, _REVIEWS = "LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"
FORGET_CORPUS = "sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl"
EVALUATIONS = {
    "core": Evaluation("L0, explained variance, loss recovered, densities", reads_text=True),
    "sparse_probing": Evaluation(
        "labels told by k features",
        (_BIOS, _REVIEWS, "codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl"),
    ),
    "scr": Evaluation("spurious correlations removed", (_BIOS, _REVIEWS)),
    "tpp": Evaluation("targeted probe perturbation", (_BIOS, _REVIEWS)),
    "absorption": Evaluation("first-letter features absorbed by others"),
    "ravel": Evaluation("attributes changed apart from each other", ("adamkarvonen/ravel_prompts",), hugging_face=True),
    "autointerp": Evaluation("explanations that a chat model tests", reads_text=True, judge=True),
    "unlearning": Evaluation("knowledge removed", ("cais/wmdp", "cais/mmlu", "wikitext"), file=FORGET_CORPUS),
}


def chosen_evaluations(names: tuple[str, ...], endpoint: str | None) -> tuple[str, ...]:
    """The evaluations that are named, each once.

    Raises:
        ParamsError: no such evaluation, or one that asks a chat model and no endpoint.
    """
    faults = [f"--eval: {unknown_name('evaluation', name, EVALUATIONS)}" for name in names if name not in EVALUATIONS]
    faults += [
        f"--eval {name}: asks a chat model (gpt-4o-mini, by SAEBench's choice); give --endpoint http://localhost:8000/v1, a "
        "server that answers to that name, or https://api.openai.com/v1"
        for name in names
        if name in EVALUATIONS and EVALUATIONS[name].judge and endpoint is None
    ]
    if faults:
        raise ParamsError(faults)
    return tuple(dict.fromkeys(names))
