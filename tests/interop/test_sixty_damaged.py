"""Sixty damaged files of every format and more: what is no dictionary is refused in lines that name the place."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from pipeline.errors import PipelineError
from tests.fuzz.hunting import Hunt, Target, find_in
from tests.fuzz.interchange import FORMS, changed_case, read, whole, write

FORMATS = tuple(dict.fromkeys(form.partition(",")[0] for form in FORMS))
WANTED, MOST = 60, 400


@pytest.mark.parametrize("format", FORMATS)
def test_sixty_damaged_files_of_each_format(format: str, tmp_path: Path) -> None:
    wholes = [whole(form, tmp_path) for form in FORMS if form.partition(",")[0] == format]
    refused: set[str] = set()
    nameless = []

    def told(folder: Path) -> object:
        try:
            return read(folder)
        except PipelineError as error:
            nameless.extend(fault for fault in error.faults if str(folder) not in fault)
            refused.add(str(error).replace(str(folder), ""))
            raise

    hunt = Hunt()
    for number in range(MOST):
        case = changed_case(Random(f"{format} {number}"), wholes[number % len(wholes)])
        find = find_in(Target(format, lambda draw: None, write, told, ()), case, hunt)
        assert find is None, f"input {number}: {find}"
        if hunt.refused >= WANTED and number >= WANTED:
            break
    assert hunt.refused >= WANTED
    assert len(refused) > WANTED / 4  # not one message for everything
    assert not nameless
