"""Every format and architecture against the tool's own loader: written here and loaded there, made there and read here.

    python -m benchmarks.peers --environments DIR --only-install
    git clone https://github.com/decoderesearch/circuit-tracer; git -C circuit-tracer checkout COMMIT
    python -m benchmarks.peer_formats --peer saelens=PYTHON --peer sparsify=PYTHON --peer dictionary_learning=PYTHON
        --peer circuit_tracer=PYTHON --peer openmoss=PYTHON --source circuit_tracer=circuit-tracer [--source openmoss=DIRECTORY]
        [--run DIRECTORY]

PYTHON is of an environment with the tool in it: the first line makes them, and says from where and at which commit to get the
sources. --source names a checkout that is loaded in place of an installed package. circuit_tracer is in no package index and
needs one, v0.4.0 or later; a tool that has one and no --peer is loaded by the first PYTHON.
--run is a project directory in which a cross-layer transcoder, or a sweep of transcoders of all layers, was trained and
analyzed (with `fold.convert_topk_to_jumprelu`): they are exported for circuit_tracer with their feature pages, which the tool's
own model of a page then checks, and compared on rows of their activation store.
Forward on raw activations in float32; norms of the differences of features and reconstructions over their norms. Writes
benchmarks/results/peer_formats.md; exit status 1 if a difference exceeds 1e-5 or a loader refuses. Cost: some minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import SOURCES
from benchmarks.quality import machine
from pipeline.api import build_dictionary, export_dictionary, load_dictionary
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.places import dictionary_places
from pipeline.interop.stored import export_stored, feature_places, stored_rows
from pipeline.opening import open_activations
from pipeline.params.loader import load_params

RESULTS = Path(__file__).parent / "results" / "peer_formats.md"
LOADERS = Path(__file__).parent / "peer_loaders.py"
ALLOWED = 1e-5
D, F, N_LAYERS, N_TOKENS = 64, 512, 3, 1024
IN, OUT = [f"blocks.{i}.ln2.hook_out" for i in range(N_LAYERS)], [f"blocks.{i}.hook_mlp_out" for i in range(N_LAYERS)]
KINDS: dict[str, dict[str, Any]] = {
    "sae": {"kind": "sae", "hook_point_in": "blocks.1.hook_resid_post", "apply_b_dec_to_input": True},
    "transcoder": {"kind": "transcoder", "hook_point_in": IN[0], "hook_point_out": OUT[0]},
    "skip transcoder": {"kind": "transcoder", "skip": True, "hook_point_in": IN[0], "hook_point_out": OUT[0]},
    "clt": {"kind": "clt", "hook_points_in": IN, "hook_points_out": OUT},
    "crosscoder": {"kind": "crosscoder", "hook_points_in": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]},
    "lorsa": {
        "kind": "lorsa", "hook_point_in": "blocks.1.ln1.hook_out", "hook_point_out": "blocks.1.hook_attn_out", "n_qk_heads": 4,
        "d_qk_head": 16, "n_ctx": 64, "rotary_dim": 8,
    },
}  # fmt: skip
# Made there: (peer, what, further arguments).
MADE = (
    *(("saelens", name, {}) for name in ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")),
    ("saelens", "topk", {"rescale_acts_by_decoder_norm": True, "decoder_init_norm": 0.1}),
    *(("saelens", name, {}) for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")),
    *(("sparsify", name, {}) for name in ("topk", "transcoder", "skip transcoder")),
    *(
        ("dictionary_learning", f"{name}Trainer", {})
        for name in ("Standard", "TopK", "BatchTopK", "MatryoshkaBatchTopK", "JumpRelu", "GatedSAE")
    ),
)
WRITTEN = {
    "saelens": [("sae", g) for g in ("relu", "topk", "jumprelu", "batchtopk")]
    + [(kind, g) for kind in ("transcoder", "skip transcoder") for g in ("relu", "jumprelu")],
    "sparsify": [(kind, "topk") for kind in ("sae", "transcoder", "skip transcoder")],
    "dictionary_learning": [("sae", g) for g in ("relu", "topk", "jumprelu", "batchtopk")],
    "circuit_tracer": [(kind, g) for kind in ("transcoder", "skip transcoder", "clt") for g in ("relu", "jumprelu")],
    "openmoss": [(kind, g) for kind in ("sae", "transcoder", "clt", "lorsa") for g in ("relu", "topk", "jumprelu")]
    + [("crosscoder", "relu")],
}


@dataclass
class Row:
    """One line of the table."""

    direction: str
    peer: str
    what: str
    job: dict[str, Any]
    dictionaries: list[Dictionary]
    x: Tensor


def dictionary(kind: str, gate: str, layer: int = 0) -> Dictionary:
    """A folded dictionary with every weight drawn; a BatchTopK one becomes the JumpReLU of its calibrated threshold."""
    about = dict(KINDS[kind])
    if "transcoder" in kind and layer:
        about |= {"hook_point_in": IN[layer], "hook_point_out": OUT[layer]}
    made = build_dictionary({**about, "d_in": D, "d_sae": F, "act_fn": gate, "top_k": 16}, seed=layer)
    draw = torch.Generator().manual_seed(layer)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            size = 0.3 if name.startswith(("b_", "log")) else 0.1
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))
        made.scale_decoder_(torch.rand(made.feature_shape, generator=draw) * 2 + 0.2)
    if gate == "batchtopk":
        made = made.to_jumprelu([rows(made)])
    return made.fold(
        {hook: {"mean_norm": 9.0 + i, "mean_square": 90.0, "d": D} for i, hook in enumerate((*made.hooks_in, *made.hooks_out))}
    )


def rows(made: Dictionary) -> Tensor:
    """Activations as the dictionary takes them."""
    shape = (
        (N_TOKENS // 32, 32)
        if made.reads_sequences
        else (N_TOKENS,)
        if made.input_dims == 1
        else (N_TOKENS, len(made.hooks_in))
    )
    return 1.5 * torch.randn(*shape, D, generator=torch.Generator().manual_seed(7))


def written(peer: str, kind: str, gate: str, folder: Path) -> Row:
    """Export, and the job of loading it."""
    place = folder / f"written-{peer}-{kind}-{gate}".replace(" ", "-")
    several = peer == "circuit_tracer" and kind != "clt"
    dictionaries = [dictionary(kind, gate, layer) for layer in range(N_LAYERS if several else 1)]
    x = rows(dictionaries[0])
    export = export_dictionary(dictionaries, place, peer, activations=[x] * len(dictionaries))
    if several:
        x = x[:, None].expand(-1, N_LAYERS, -1)
    job = {"peer": peer, "do": "load", "path": str(export.path), "kind": kind, "arguments": {}}
    name = gate if gate != "batchtopk" else "batchtopk as jumprelu"
    return Row("written here, loaded there", peer, f"{kind}, {name}", job, dictionaries, x)


def made(peer: str, what: str, arguments: dict[str, Any], folder: Path) -> Row:
    """The job of making one."""
    stem = f"made-{peer}-{what}-{len(arguments)}".replace(" ", "-")
    place = folder / stem / "layers.1.mlp" if peer == "sparsify" else folder / stem
    x = 1.5 * torch.randn(N_TOKENS, D, generator=torch.Generator().manual_seed(7))
    named = ", ".join((what, *(f"{key} {value}" for key, value in arguments.items())))
    job = {"peer": peer, "do": "make", "path": str(place), "kind": what, "arguments": arguments}
    return Row("made there, read here", peer, named, job, [], x)


def trained(directory: Path, folder: Path) -> Row:
    """Export what was trained in a project directory for circuit_tracer, with its features, and the job of loading it."""
    place = folder / f"trained-{directory.name}"
    with contextlib.chdir(directory):
        params = load_params("params.yaml")
        places = list(dictionary_places(params, "data/inference").values())
        shown = feature_places(params, places, ())
        export_stored(params, places, place, "circuit_tracer", activations="data/activations.json", features=shown)
        dictionaries = [load_dictionary(each) for each in places]
        inputs = [stored_rows(open_activations("data/activations.json"), each, N_TOKENS) for each in dictionaries]
    kind, act_fn = dictionaries[0].config.kind, dictionaries[0].config.act_fn
    job = {"peer": "circuit_tracer", "do": "load", "path": str(place), "kind": kind, "arguments": {}}
    what = f"{kind} of {params.model.model_name}, {act_fn}, {len(dictionaries)} trained, with feature pages"
    x = inputs[0] if len(inputs) == 1 else torch.stack(inputs, dim=1)
    return Row("written here, loaded there", "circuit_tracer", what, job, dictionaries, x.float())


def run_peer(python: str, jobs: list[dict[str, Any]], sources: dict[str, str], folder: Path) -> dict[str, list[str]]:
    """Let a tool do its jobs in its own environment; the versions of its packages."""
    file = folder / "jobs.json"
    file.write_text(json.dumps({"jobs": jobs, "sources": sources}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([python, str(LOADERS), str(file)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{python}: {done.stderr[-2000:]}")
    versions: dict[str, list[str]] = json.loads((folder / "versions.json").read_text())
    return versions


def commit(checkout: Path) -> str:
    """The commit of a checkout, 40 hexadecimal digits, and whether its files were changed.

    Raises:
        click.BadParameter: it is none.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    root = git("rev-parse", "--show-toplevel")
    if not root or Path(root).resolve() != checkout.resolve():
        raise click.BadParameter(f"--source {checkout}: no git checkout, whose commit the table should state; clone it there")
    return git("rev-parse", "HEAD") + (" with changed files" if git("status", "--porcelain", "--untracked-files=no") else "")


@torch.no_grad()
def compared(row: Row) -> tuple[float, float, float, str]:
    """Relative differences of features and reconstructions, L0, and what went wrong."""
    failed = Path(row.job["out"]).with_suffix(".failed")
    if failed.exists():
        return float("nan"), float("nan"), float("nan"), " ".join(failed.read_text().split())[:200]
    theirs = {key: torch.from_numpy(value) for key, value in np.load(row.job["out"]).items()}
    if row.job["do"] == "make":
        row.dictionaries = [load_dictionary(row.job["path"])]
    if len(row.dictionaries) == 1:
        own = row.dictionaries[0]
        f = own.encode(row.x)
        y = own.reconstruct(f, row.x)
        if own.gate_scale is not None:  # exported in the units in which its features compete
            f = f * own.gate_scale
    else:
        pairs = [(d.encode(row.x[:, i]), d(row.x[:, i])) for i, d in enumerate(row.dictionaries)]
        f, y = (torch.stack(parts, dim=1) for parts in zip(*pairs, strict=True))
    l0 = float((f != 0).sum()) / f.shape[:-1].numel()
    return float((theirs["f"] - f).norm() / f.norm()), float((theirs["y"] - y).norm() / y.norm()), l0, ""


def _pairs(given: tuple[str, ...], what: str) -> dict[str, str]:
    found = dict(item.partition("=")[::2] for item in given)
    wrong = [name for name, value in found.items() if name not in WRITTEN or not value]
    if wrong:
        raise click.BadParameter(f"{what} NAME=PATH, NAME one of {', '.join(WRITTEN)}; got {', '.join(wrong)}")
    return found


@click.command()
@click.option("--peer", "peers", multiple=True, required=True, help="NAME=PYTHON of the environment that has it; repeatable.")
@click.option("--source", "sources", multiple=True, help="NAME=DIRECTORY of a checkout; repeatable.")
@click.option("--run", "runs", multiple=True, type=click.Path(path_type=Path, exists=True), help="A finished run; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(peers: tuple[str, ...], sources: tuple[str, ...], runs: tuple[Path, ...], out: Path) -> None:
    """Compare with the tools' own loaders."""
    pythons, given = _pairs(peers, "--peer"), _pairs(sources, "--source")
    checkouts = {name: str(Path(directory).resolve()) for name, directory in given.items()}
    commits = {name: commit(Path(directory)) for name, directory in given.items()}
    options = [*(f"--peer {name}=PYTHON" for name in pythons), *(f"--source {name}=DIRECTORY" for name in checkouts)]
    for name in checkouts:
        pythons.setdefault(name, next(iter(pythons.values())))
    _check(pythons, checkouts, runs)
    versions: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = [written(peer, kind, gate, folder) for peer in pythons for kind, gate in WRITTEN[peer]]
        table += [made(peer, what, arguments, folder) for peer, what, arguments in MADE if peer in pythons]
        table += [trained(each.resolve(), folder) for each in runs]
        for i, row in enumerate(table):
            row.job |= {"rows": str(folder / f"{i}.npy"), "out": str(folder / f"{i}.npz")}
            np.save(row.job["rows"], row.x.numpy())
        for peer, python in pythons.items():
            versions |= run_peer(python, [row.job for row in table if row.peer == peer], checkouts, folder)
        found = [compared(row) for row in table]
    bad = [error or not (f <= ALLOWED and y <= ALLOWED) for f, y, _, error in found]
    command = " ".join(("python -m benchmarks.peer_formats", *options, *("--run DIRECTORY" for _ in runs)))
    out.write_text("\n".join([*head(command, versions, commits, bool(runs)), *lines(table, found)]) + "\n")
    click.echo(out.read_text())
    sys.exit(any(bad))


def _check(pythons: dict[str, str], checkouts: dict[str, str], runs: tuple[Path, ...]) -> None:
    address, at = SOURCES["circuit_tracer"]
    if "circuit_tracer" in pythons and "circuit_tracer" not in checkouts:
        raise click.BadParameter(f"--source circuit_tracer=DIRECTORY is missing, a checkout of {address}, commit {at}")
    if runs and "circuit_tracer" not in pythons:
        raise click.BadParameter("--run exports for circuit_tracer; name its --peer and --source too")
    for name, python in pythons.items():
        if shutil.which(python) is None:
            raise click.BadParameter(f"--peer {name}={python}: no program; python -m benchmarks.peers --only-install makes one")


def head(command: str, versions: dict[str, list[str]], commits: dict[str, str], trained_ones: bool) -> list[str]:
    """What was compared with what."""
    which = [f"- {name}: {', '.join(packages)}{_source(name, commits)}" for name, packages in versions.items()]
    about = (
        ["", "Trained ones are exported with `--with-features`; circuit_tracer's own model of a page reads every page."]
        if trained_ones
        else []
    )
    return [
        "# Other tools' loaders",
        "",
        f"`{command}` on {machine()}.",
        "",
        "Environments by `python -m benchmarks.peers --environments DIR --only-install`, which says how to get the sources:",
        "",
        *which,
        "",
        f"Relative differences of features and reconstructions (norms) of {N_TOKENS:,} raw activations of width {D} in",
        f"float32; allowed {ALLOWED:.0e}. Made there: trained by the tool for a few steps, SAELens' transcoders (which it has",
        "no trainer for) filled; saved by the tool itself.",
        *about,
        "",
    ]


def _source(name: str, commits: dict[str, str]) -> str:
    return f"; source {SOURCES[name][0] if name in SOURCES else name} at {commits[name]}" if name in commits else ""


def lines(table: list[Row], found: list[tuple[float, float, float, str]]) -> list[str]:
    """The table."""
    rows = [
        f"| {row.direction} | {row.peer} | {row.what} | {f:.1e} | {y:.1e} | {l0:.1f} | {error} |"
        for row, (f, y, l0, error) in zip(table, found, strict=True)
    ]
    return [
        "| direction | tool | dictionary | features | reconstructions | L0 | |",
        "|---|---|---|---:|---:|---:|---|",
        *rows,
    ]


if __name__ == "__main__":
    main()
