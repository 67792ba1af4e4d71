"""Other packages' TopK trainers beside this one: each installed into an environment of its own, all on the same rows in turn.

    python -m benchmarks.peers --environments DIR                  # installs what is missing there, then times S0 and S1
    python -m benchmarks.peers --environments DIR --only-install   # prints the --peer options of the other benchmarks
    python -m benchmarks.peers --environments DIR --small          # seconds; nothing is written

The packages' own defaults, as peer_trainers.py states them; shapes, rows and ways of timing as in step.py. torch is that of
this environment, where a package takes it. Writes benchmarks/results/peers.md.

--only-install also makes the environments in which peer_formats.py has the loaders of circuit_tracer and openmoss run, and says
where their sources are: of circuit_tracer what its loader imports, since the package of that name is another one.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import click
import torch

from benchmarks import step

RESULTS = Path(__file__).parent / "results" / "peers.md"
VERSIONS = {
    "sparsify": "eai-sparsify==1.3.3",
    "saelens": "sae-lens==6.54.12",
    "dictionary_learning": "dictionary-learning==0.1.0",
}
# Beside torch, for the loaders of sources. circuit_tracer: what its loader imports, within the bounds of its pyproject.toml, as
# huggingface-hub below 1. openmoss: as its uv.lock has them; later ones of transformer-lens have no HookedTransformer.
LOADERS = {
    "circuit_tracer": ("huggingface-hub==0.36.2", "transformers==4.57.3", "pydantic==2.14.4"),
    "openmoss": (
        "llamascopium==2.0.0b34", "transformer-lens==2.17.0", "transformers==4.57.6", "huggingface-hub==0.36.2",
        "datasets==4.6.1", "pyarrow==23.0.1",
    ),
}  # fmt: skip
# Where the sources are: address and commit.
SOURCES = {
    "circuit_tracer": ("https://github.com/decoderesearch/circuit-tracer", "4bb8c0ea10bde09727e14565ec8469656880da53"),
    "openmoss": ("https://github.com/OpenMOSS/Language-Model-SAEs", "cfd202b18b22007f3a293670b7bbac972bd62093"),
}
# Comes with a package's requirements, built for another torch, and then breaks the import of transformers.
UNUSED = ("torchvision",)


def installed(environments: Path, name: str) -> str:
    """The Python of a peer's environment, which is made if there is none, or not the whole of it, or of other versions.

    Raises:
        click.ClickException: pip cannot install the package; the message has the end of what pip says.
    """
    place = environments / name
    python, done = place / "bin" / "python", place / "installed.txt"
    wanted = [*(LOADERS.get(name) or [VERSIONS[name]]), f"torch=={torch.__version__.partition('+')[0]}"]
    if not done.exists() or done.read_text().split() != wanted:
        click.echo(f"installing {' and '.join(wanted)} into {place}", err=True)
        venv.create(place, with_pip=True, clear=True)
        pip = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True, check=False)
        if pip.returncode:
            raise click.ClickException(f"pip cannot install {' and '.join(wanted)} into {place}: {pip.stderr[-1000:].strip()}")
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *UNUSED], capture_output=True, check=True)
        done.write_text("\n".join(wanted) + "\n")
    return str(python)


@click.command()
@click.option("--environments", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where they are, or go.")
@click.option("--peer", "names", multiple=True, type=click.Choice([*VERSIONS, *LOADERS]), help="Repeatable; all without it.")
@click.option("--only-install", is_flag=True, help="Time nothing.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--small", is_flag=True, help="A case of seconds; nothing is written.")
def main(environments: Path, names: tuple[str, ...], only_install: bool, rounds: int, threads: int, small: bool) -> None:
    """Install, time, write."""
    if not only_install and (loaders := [name for name in names if name in LOADERS]):
        raise click.BadParameter(
            f"{', '.join(loaders)}: has no trainer to time; one of {', '.join(VERSIONS)}, or --only-install"
        )
    every = (*VERSIONS, *LOADERS) if only_install else tuple(VERSIONS)
    peers = {name: installed(environments.resolve(), name) for name in names or every}
    if only_install:
        for kind in (VERSIONS, LOADERS):  # the second ones are for peer_formats alone
            if options := [f"--peer {name}={python}" for name, python in peers.items() if name in kind]:
                click.echo(" ".join(options))
        for name in (name for name in peers if name in SOURCES):
            address, commit = SOURCES[name]
            click.echo(f"git clone {address} {name} && git -C {name} checkout {commit}", err=True)
        sys.exit()
    cases = step.SMALL if small else [case for case in step.CASES if case.act_fn == "topk"]
    lines = [line for case in cases for line in step.table(case, *step.measure(case, None, peers, rounds, threads))]
    packages = f"Peers: {', '.join(VERSIONS[name] for name in peers)}."
    text = step.report([*lines, "", packages], "python -m benchmarks.peers --environments DIR", rounds, threads)
    click.echo(text)
    if not small and not names:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
