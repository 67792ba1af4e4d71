"""Other tools' dictionaries, trained by themselves, judged by this pipeline beside ours at the same L0 and number of tokens.

    dvc repro tokenize
    python -m benchmarks.peer_dictionaries --peer saelens=PYTHON --peer sparsify=PYTHON --peer dictionary_learning=PYTHON

PYTHON is of an environment with the tool in it (python -m benchmarks.peers --environments DIR --only-install makes them). Each
tool trains by peer_judged.py on the activations of layer 2 of the embedded default, once through the same tokens in the same
order, and saves in its own format. What it saved is read by stages.import_dictionary and judged by stages.evaluate, both as
they are. FVU and L0 must be those that the tool's own forward gives on the same held-out tokens; features and reconstructions
of 4,096 of them must be equal. Beside each stands a TopK dictionary of ours with the same number of features, tokens and
steps, and with the L0 that the tool came to.

Writes benchmarks/results/peer_dictionaries.md; exit status 1 if something differs by more than 1e-5. --work keeps what was
trained, and a run with the same one goes on.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.peer_judged import SAMPLE, TRAINERS
from benchmarks.quality import machine
from pipeline.activations.interface import Activations
from pipeline.api import load_dictionary, train_dictionary
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.base import Dictionary
from pipeline.evaluation.split_tokens import SplitTokens
from pipeline.lm.loading import load_language_model
from pipeline.opening import open_activations
from pipeline.params.reading import read_mapping

RESULTS = Path("benchmarks/results/peer_dictionaries.md")
SCRIPT = Path(__file__).with_name("peer_judged.py")
ALLOWED = 1e-5
LAYER, L0, BATCH = 2, 24, 1024
HOOKS = {
    "resid": f"blocks.{LAYER}.hook_resid_post",
    "read": f"blocks.{LAYER}.ln2.hook_out",
    "written": f"blocks.{LAYER}.hook_mlp_out",
}
HEAD = (
    "tool", "dictionary", "L0", "FVU", "delta CE", "dead", "ours: FVU", "delta CE", "dead", "FVU off", "L0 off", "features off",
    "reconstructions off", "at the threshold",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Of a run.

    Attributes:
        work: directory of all that is made.
        token_store: the embedded default's.
        tokens, features: of each dictionary.
        evaluated: held-out tokens; None: all.
    """

    work: Path
    token_store: Path
    tokens: int
    features: int
    evaluated: int | None

    def parameters(self, dictionary: str) -> Path:
        """params.yaml with the hook points, the numbers of tokens and a dictionary's name, as a file."""
        values = read_mapping("params.yaml")
        values["activations"] |= {"hook_points": list(HOOKS.values()), "total_tokens": self.tokens}
        values["dictionary"]["name"] = dictionary
        values["evaluation"]["tokens"] = self.evaluated
        values["tracking"]["enabled"] = False
        file = self.work / f"{dictionary}.json"
        file.write_text(json.dumps(values), encoding="utf-8")
        return file


@dataclass
class Judged:
    """A dictionary of another tool.

    Attributes:
        peer, kind: tool, and what of it.
        theirs: what its own forward gives: fvu, l0, rows, seconds, version.
        metrics: what evaluate gives.
        off: relative differences: fvu, l0, features, reconstructions.
        undecided: int64 [m, 2], entries of the sample at the threshold, see :func:`undecided`; features and reconstructions are
            compared at the other tokens.
    """

    peer: str
    kind: str
    theirs: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    off: dict[str, float] = field(default_factory=dict)
    undecided: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.int64))

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.peer}-{self.kind}"

    @property
    def transcodes(self) -> bool:
        """Whether it writes what an MLP writes."""
        return "transcoder" in self.kind

    @property
    def ours(self) -> tuple[bool, int]:
        """What of ours stands beside it: a transcoder or an autoencoder, and its k."""
        return self.transcodes, max(1, round(self.theirs["l0"]))


def stage(name: str, *arguments: str | Path) -> None:
    """Run a stage in this process."""
    importlib.import_module(f"stages.{name}").main.main([str(each) for each in arguments], standalone_mode=False)
    torch.use_deterministic_algorithms(False)


def activations(run: Settings) -> Activations:
    """The store that all train on, its norms, and the rows as files for the tools; what is there stays."""
    work = run.work
    manifest, file = work / "activations.json", run.parameters("main")
    if not (work / "norms.json").exists():
        stage("generate_activations", "--params", file, "--tokens", run.token_store, "--out", manifest,
              "--metrics", work / "generate.json")  # fmt: skip
        names = ("norms.json", "norm_statistics.safetensors", "norm_metrics.json", "norm_plots")
        out, statistics, metrics, plots = (work / name for name in names)
        stage("compute_norm", "--params", file, "--activations", manifest, "--statistics", statistics, "--metrics", metrics,
              "--plots", plots, "--out", out)  # fmt: skip
    store, rows = open_activations(manifest), work / "rows"
    rows.mkdir(exist_ok=True)
    if not (rows / "held_out_written.npy").exists():
        for name, hook in HOOKS.items():
            np.save(rows / f"{name}.npy", store.read(hook, 0, store.n_rows).float().numpy())
        for name, fresh in held_out(run.token_store, run.evaluated).items():
            np.save(rows / f"held_out_{name}.npy", fresh.numpy())
    return store


def held_out(token_store: Path, tokens: int | None) -> dict[str, Tensor]:
    """Activations [M, D] of the held-out tokens that evaluate takes, float32."""
    store, model = open_tokens(token_store), load_language_model("demo")
    found: dict[str, list[Tensor]] = {name: [] for name in HOOKS}
    for batch in SplitTokens(store.eval, store.eval.mask, tokens, 32):
        captured = model.activations(batch.tokens, list(HOOKS.values()))
        for name, hook in HOOKS.items():
            found[name].append(captured[hook][batch.mask].float())
    return {name: torch.cat(parts) for name, parts in found.items()}


def train_peers(peers: dict[str, str], run: Settings) -> list[Judged]:
    """Let the tools train, save and judge what is not there yet, beside one another, a thread each.

    Raises:
        click.ClickException: one ends badly; the message has the end of what it says.
    """
    judged, started = [], {}
    for peer, python in peers.items():
        places = {kind: run.work / "theirs" / f"{peer}-{kind}" for kind in TRAINERS[peer]}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        asked = {"batch": BATCH, "features": run.features, "l0": L0, "layer": LAYER}
        asked |= {"jobs": {kind: str(place) for kind, place in places.items()}}
        command = [python, str(SCRIPT), peer, str(run.work / "rows"), json.dumps(asked)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        log = run.work / f"{peer}.log"
        with log.open("w") as said:
            started[peer] = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT), log, places
    for peer, (process, log, places) in started.items():
        if process.wait():
            raise click.ClickException(f"{peer}: status {process.returncode}:\n{log.read_text()[-2000:]}")
        judged += [Judged(peer, kind, json.loads((place / "result.json").read_text())) for kind, place in places.items()]
    return judged


def evaluated(name: str, run: Settings) -> dict[str, float]:
    """What the evaluate stage says of data/inference/<name> of the run; what is there stays."""
    work = run.work
    out = work / "metrics" / f"{name}.json"
    if not out.exists():
        plots, norms, statistics = (work / part for part in ("plots", "norms.json", "norm_statistics.safetensors"))
        stage("evaluate", "--params", run.parameters(name), "--inference", work / "inference", "--tokens", run.token_store,
              "--norms", norms, "--statistics", statistics, "--out", out, "--plots", plots,
              "--run", work / "run.json")  # fmt: skip
    found: dict[str, float] = json.loads(out.read_text())
    return found


def judge(each: Judged, run: Settings) -> None:
    """Import, evaluate and compare.

    Raises:
        click.ClickException: evaluate counted other tokens than the tool was given.
    """
    work = run.work
    saved = work / "theirs" / each.name / "saved"
    place = work / "inference" / each.name
    if not place.exists():
        stage("import_dictionary", saved, "--params", run.parameters(each.name), "--name", each.name,
              "--out", work / "inference")  # fmt: skip
    each.metrics = evaluated(each.name, run)
    if each.metrics["evaluated_tokens"] != each.theirs["rows"]:
        raise click.ClickException(
            f"{each.name}: evaluate counts {each.metrics['evaluated_tokens']:.0f} tokens, the tool {each.theirs['rows']}"
        )
    sample = {name: torch.from_numpy(array) for name, array in np.load(work / "theirs" / each.name / "sample.npz").items()}
    x = torch.from_numpy(np.load(work / "rows" / f"held_out_{'read' if each.transcodes else 'resid'}.npy")[:SAMPLE])
    dictionary = load_dictionary(place)
    with torch.no_grad():
        f, y = dictionary.encode(x), dictionary(x)
        each.undecided = undecided(dictionary, x, (sample["f"] != 0) != (f != 0))
    same = torch.ones(len(x), dtype=torch.bool)
    same[each.undecided[:, 0]] = False
    each.off = {
        "fvu": abs(each.metrics["fvu"] / each.theirs["fvu"] - 1),
        "l0": abs(each.metrics["l0_mean"] / each.theirs["l0"] - 1),
        "features": float((sample["f"] - f)[same].norm() / sample["f"].norm()),
        "reconstructions": float((sample["y"] - y)[same].norm() / sample["y"].norm()),
    }


def undecided(dictionary: Dictionary, x: Tensor, differs: Tensor) -> Tensor:
    """Entries that are active in one forward alone since their gating value lies at the threshold, up to rounding.

    A gate jumps there: sums in another order decide. In float64 such a value is no further from the threshold than ALLOWED
    times the feature's gating values (root mean square).

    Args:
        x: [n, d].
        differs: bool [n, F], active in one forward and not in the other.

    Returns: int64 [m, 2], token and feature.
    """
    exact = copy.deepcopy(dictionary).double()
    codes, theta = exact.codes(x.double()), exact.thresholds()
    z = codes.gating
    cut = torch.where(codes.f != 0, z, torch.inf).amin(1, keepdim=True) if theta is None else theta.double()
    near = (z - cut).abs() <= ALLOWED * z.square().mean(0).sqrt()
    return (differs & near).nonzero()


def own(what: tuple[bool, int], store: Activations, run: Settings) -> dict[str, float]:
    """What evaluate says of a TopK dictionary of ours, trained on as many tokens in as many steps."""
    transcodes, k = what
    name = f"ours-{'transcoder' if transcodes else 'sae'}-{k}"
    place = run.work / "inference" / name
    if not place.exists():
        read = {"kind": "transcoder", "hook_point_in": HOOKS["read"], "hook_point_out": HOOKS["written"]}
        about = read if transcodes else {"kind": "sae", "hook_point_in": HOOKS["resid"]}
        trained = train_dictionary(
            store,
            dictionary={**about, "act_fn": "topk", "top_k": k, "d_sae": run.features},
            trainer={"total_training_tokens": store.n_rows // BATCH * BATCH},
            batch_size=BATCH,
            device="cpu",
        )
        trained.inference.save(place)
    return evaluated(name, run)


def line(each: Judged, ours: dict[str, float]) -> str:
    """A row of the table."""
    found = each.metrics
    cells = [each.peer, each.kind, f"{found['l0_mean']:.1f}"]
    for metrics in (found, ours):
        cells += [f"{metrics['fvu']:.4f}", f"{metrics['delta_ce']:.3f}", f"{metrics['dead_fraction']:.1%}"]
    return f"| {' | '.join([*cells, *(f'{value:.0e}' for value in each.off.values()), str(len(each.undecided))])} |"


def report(rows: list[str], judged: list[Judged], run: Settings) -> str:
    """The page."""
    versions = sorted({str(each.theirs["version"]) for each in judged})
    n = judged[0].theirs["rows"]
    whole = {each.peer for each in judged} == set(TRAINERS)
    asked = f"--tokens {run.tokens} --features {run.features}" + (f" --evaluated {run.evaluated}" if run.evaluated else "")
    tools = " ".join(f"--peer {name}=PYTHON" for name in dict.fromkeys(each.peer for each in judged))
    return "\n".join(
        [
            "# Other tools' dictionaries, judged here",
            "",
            f"`python -m benchmarks.peer_dictionaries {tools} {asked}` on {machine()}. {', '.join(versions)}.",
            "",
            f"Layer {LAYER} of the embedded default, residual stream (transcoders: its MLP); {run.features:,} features, "
            f"{run.tokens:,} tokens in batches of {BATCH:,}, once through. Each tool has its own trainer "
            "(`benchmarks/peer_judged.py` has the settings; SAELens has none for transcoders, whose loop is ours) and files. "
            f"Read by `stages.import_dictionary`, judged by `stages.evaluate` on {n:,} held-out tokens. Ours: TopK with the L0 "
            "that the tool came to. Such a run is short: the figures do not rank the tools at their best.",
            "",
            "The last columns are relative differences between this pipeline and the tool's own forward: FVU and L0 of all "
            f"held-out tokens, features and reconstructions of {SAMPLE:,} of them (norms). Allowed: {ALLOWED:.0e}. At the "
            "threshold: entries that are active in one forward alone, their gating value being the threshold up to rounding, "
            f"{ALLOWED:.0e} of the feature's; features and reconstructions are compared at the other tokens.",
            "",
            f"| {' | '.join(HEAD)} |",
            "|---|---|" + "---:|" * (len(HEAD) - 2),
            *rows,
            *([] if whole else ["", "Not all tools took part."]),
            "",
        ]
    )


@click.command()
@click.option("--peer", "given", multiple=True, required=True, help="NAME=PYTHON of the environment that has it; repeatable.")
@click.option("--tokens", default=524_288, show_default=True, help="That each is trained on.")
@click.option("--features", default=1024, show_default=True)
@click.option("--evaluated", type=int, help="Held-out tokens that are judged on; without it all.")
@click.option("--store", "token_store", type=click.Path(path_type=Path), default="data/tokens.zarr", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Directory that keeps what was made; else nothing is kept.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    given: tuple[str, ...], tokens: int, features: int, evaluated: int | None, token_store: Path, work: Path | None, out: Path
) -> None:
    """Train, import, evaluate, compare."""
    peers = dict(item.partition("=")[::2] for item in given)
    wrong = [name for name, python in peers.items() if name not in TRAINERS or not python]
    if wrong:
        raise click.BadParameter(f"--peer NAME=PYTHON, NAME one of {', '.join(TRAINERS)}; got {', '.join(wrong)}")
    with tempfile.TemporaryDirectory() as temporary:
        run = Settings((work or Path(temporary)).resolve(), token_store, tokens, features, evaluated)
        for name in ("metrics", "inference"):
            (run.work / name).mkdir(parents=True, exist_ok=True)
        store = activations(run)
        judged = train_peers(peers, run)
        rows = []
        for each in judged:
            judge(each, run)
            rows.append(line(each, own(each.ours, store, run)))
            click.echo(rows[-1])
    out.write_text(report(rows, judged, run), encoding="utf-8")
    sys.exit(any(value > ALLOWED for each in judged for value in each.off.values()))


if __name__ == "__main__":
    main()
