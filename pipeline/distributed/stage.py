"""A stage in several processes: the one that the user starts starts the others, or finds itself started as one of them."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

from pipeline.progress import shown_elsewhere


def in_processes(stage: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a stage's main function, which takes loaded parameters in the place of their file, and `processes`.

    It is called in this process, or, where the section `distributed` asks for several, in each of those that this one starts
    and waits for. `processes` is what each knows together with the others (:class:`pipeline.processes.Reductions`). The first
    one alone shows progress.

    Args:
        stage: its name in dvc.yaml: all processes must run the same code of it, with the same parameters.

    Raises:
        PipelineError: of the parameters or the processes, or what the function has raised in one of them.
    """

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        module = inspect.unwrap(function).__globals__.get("__spec__")
        name = getattr(module, "name", function.__module__)  # run by `python -m` it is called __main__

        @functools.wraps(function)
        def called(*, params: str, **options: Any) -> None:
            from pipeline.distributed.group import joined
            from pipeline.distributed.launch import launch, to_be_launched
            from pipeline.params.loader import load_params

            loaded = load_params(params)
            if to_be_launched(loaded.distributed):
                with shown_elsewhere():
                    launch(loaded.distributed, name)
                return
            with contextlib.ExitStack() as stack:
                processes = stack.enter_context(joined(loaded.distributed, stage, loaded.to_dict()))
                if processes.rank != 0:
                    stack.enter_context(shown_elsewhere())
                function(params=loaded, processes=processes, **options)

        return called

    return decorated
