"""Options of `stages.saebench` as what is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.dictionaries.places import chosen, dictionary_places
from pipeline.params.loader import load_params
from pipeline.suites.saebench_environment import REQUIREMENTS, environment_lines
from pipeline.suites.saebench_evaluations import chosen_evaluations
from pipeline.suites.saebench_run import Settings, check_own, run


def printed(environment: bool, requirements: bool) -> list[str]:
    """What the two options that only print are answered with; nothing without them."""
    if requirements:
        return list(REQUIREMENTS)
    return environment_lines() if environment else []


def evaluate(params: str, evaluations: tuple[str, ...], options: Mapping[str, Any]) -> Iterator[str]:
    """Run evaluations, with the options of the command line; lines for a terminal.

    Raises:
        ParamsError, DataError, NumericsError: see :func:`pipeline.suites.saebench_run.run`.
    """
    loaded = load_params(params)
    names = chosen_evaluations(evaluations, options["endpoint"])
    member = chosen(options["member"], loaded.members, "the run")
    own = loaded.members[member]
    files = {"tokens": options["tokens"], "out": options["out"], "run": options["run_file"]}
    others = ("member", "inference", "tokens", "out", "run_file")
    settings = Settings(**{key: value for key, value in options.items() if key not in others})
    check_own(own, settings.model)
    place = dictionary_places(loaded, options["inference"])[member]
    yield from run(own, place, member, names, settings, **files)
