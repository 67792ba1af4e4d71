from __future__ import annotations

import pytest

from pipeline.lm.loading import load_language_model
from tests.project import make_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """The small projects' language model, with its tokenizer."""
    place = tmp_path_factory.mktemp("small") / "model"
    make_model(place)
    return load_language_model(str(place), device="cpu")
