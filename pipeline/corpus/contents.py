"""What the data set is now: by its files' contents where it is local, by its revision where it is on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.corpus.folder import text_files
from pipeline.corpus.hub import saved_on_disk
from pipeline.corpus.mixture import of_source
from pipeline.corpus.sources import DEMO, looks_local, no_such_text
from pipeline.digests import FileDigests
from pipeline.files import local_path

if TYPE_CHECKING:
    from pipeline.params.schema import DatasetParams


Contents = dict[str, int | str | None]


def text_contents(dataset: DatasetParams, digests: FileDigests) -> Contents | dict[str, Contents]:
    """What tells the texts of a data set from others under the same name; the embedded corpus is told by its packages.

    Returns: of several sources that of each by name.

    Raises:
        DataError: there is no such file or directory, or nothing in it is read.
    """
    if dataset.sources is None:
        return _contents(dataset, digests)
    found = {}
    for name, part in dataset.each().items():
        with of_source(name):
            found[name] = _contents(part, digests)
    return found


def _contents(dataset: DatasetParams, digests: FileDigests) -> Contents:
    name = dataset.dataset_name_or_path
    path = None if name == DEMO else local_path(name)
    if path is None:
        if looks_local(name):
            raise no_such_text(name)
        return {"name": name, "revision": dataset.revision}
    if saved_on_disk(path):
        return digests.of_all(path, _every_file(path))
    files = text_files(path, dataset.split, dataset.config_name)
    return digests.of_all(files.base, files.names)


def _every_file(base: Path) -> list[str]:
    return [os.path.relpath(os.path.join(place, name), base) for place, _, names in os.walk(base) for name in names]
