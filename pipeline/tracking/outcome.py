"""What a tracked run says of a stage that has not ended well."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import Interrupted, PipelineError, tells_the_outcome
from pipeline.tracking.opening import open_tracker
from pipeline.tracking.run_file import read_ids, read_members
from pipeline.tracking.tracker import FAILED, STOPPED

if TYPE_CHECKING:
    from pipeline.params.sections.tracking import TrackingParams


def outcome_told(
    stage: str, tracking_of: Callable[[str], TrackingParams]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a stage's main function, whose options `params` and `run` are the parameter file and the run file: where it ends
    by an exception, the run (of a sweep each) becomes FAILED, or KILLED where it was interrupted. A run that is not there is
    not made. Of several processes one tells it: the one that has started them, else the first.

    Args:
        stage: its name.
        tracking_of: parameter file -> the parameters of tracking.
    """

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def called(*, params: str, run: str, **options: Any) -> None:
            try:
                function(params=params, run=run, **options)
            except BaseException as error:
                if tells_the_outcome():
                    with contextlib.suppress(PipelineError):
                        _tell(stage, tracking_of(params), run, STOPPED if _stopped(error) else FAILED)
                raise

        return called

    return decorated


def _stopped(error: BaseException) -> bool:
    return isinstance(error, Interrupted | KeyboardInterrupt) or getattr(error, "exit_code", None) == Interrupted.exit_code


def _tell(stage: str, tracking: TrackingParams, run: str, status: str) -> None:
    for member in ("", *read_members(run)):
        if read_ids(run, member):
            open_tracker(tracking, stage=stage, run_file=run, member=member).close(status)
