"""Other packages' TopK trainers beside this one: each installed into an environment of its own, all on the same rows in turn.

    python -m benchmarks.peers --environments DIR                  # installs what is missing there, then times S0 and S1
    python -m benchmarks.peers --environments DIR --only-install   # prints the --peer options of benchmarks.step and short_runs
    python -m benchmarks.peers --environments DIR --small          # seconds; nothing is written

The packages' own defaults, as peer_trainers.py states them; shapes, rows and ways of timing as in step.py. torch is that of
this environment, where a package takes it. Writes benchmarks/results/peers.md.
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
# Comes with a package's requirements, built for another torch, and then breaks the import of transformers.
UNUSED = ("torchvision",)


def installed(environments: Path, name: str) -> str:
    """The Python of a peer's environment, which is made if there is none, or not the whole of it.

    Raises:
        click.ClickException: pip cannot install the package; the message has the end of what pip says.
    """
    place = environments / name
    python, done = place / "bin" / "python", place / f"{VERSIONS[name]}.installed"
    if not done.exists():
        click.echo(f"installing {VERSIONS[name]} into {place}", err=True)
        venv.create(place, with_pip=True, clear=True)
        wanted = [VERSIONS[name], f"torch=={torch.__version__.partition('+')[0]}"]
        pip = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True, check=False)
        if pip.returncode:
            raise click.ClickException(f"pip cannot install {' and '.join(wanted)} into {place}: {pip.stderr[-1000:].strip()}")
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *UNUSED], capture_output=True, check=True)
        done.touch()
    return str(python)


@click.command()
@click.option("--environments", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where they are, or go.")
@click.option("--peer", "names", multiple=True, type=click.Choice(list(VERSIONS)), help="Repeatable; all without it.")
@click.option("--only-install", is_flag=True, help="Time nothing.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--small", is_flag=True, help="A case of seconds; nothing is written.")
def main(environments: Path, names: tuple[str, ...], only_install: bool, rounds: int, threads: int, small: bool) -> None:
    """Install, time, write."""
    peers = {name: installed(environments.resolve(), name) for name in names or VERSIONS}
    if only_install:
        click.echo(" ".join(f"--peer {name}={python}" for name, python in peers.items()))
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
