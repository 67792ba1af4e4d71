"""What a parameter file may name as an input, beside what the run itself writes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.params.section import across

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.initializer import InitializerParams

WRITTEN = ("initial", "trained", "inference")


@across("initializer.from_dictionary")
def start_is_no_output_of_the_run(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """A run that wrote over its own start would begin elsewhere each time, and DVC removes outputs first."""
    start = initializer.from_dictionary
    if start is None:
        return None
    own = {os.path.realpath(os.path.join("data", folder, dictionary.name)) for folder in WRITTEN}
    if os.path.realpath(start) not in own:
        return None
    return (
        f"{start} is written by this run itself (dictionary.name {dictionary.name}); state another name, or copy it elsewhere"
    )
