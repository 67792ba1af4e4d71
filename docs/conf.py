"""The documentation as a site: `sphinx-build -W docs site`. The notebooks in tutorials/ run while it is built."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "Scopeline"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Scopeline"
html_copy_source = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

default_role = "code"  # single backticks, as in Markdown
nb_execution_mode = "force"  # what is shown is what this code gives
nb_execution_raise_on_error = True
nb_execution_timeout = 170
nb_merge_streams = True
nb_output_stderr = "remove"  # progress lines

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # the fields of a class are described once


def shapes_as_they_are(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """[b, T, *features] in a docstring is a shape, no emphasis. What a module says of itself stands on the page."""
    lines[:] = [] if what == "module" else [re.sub(r"(?<![\\*`\w])\*(?=\w)", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", shapes_as_they_are)
