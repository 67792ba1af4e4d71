from __future__ import annotations

import pytest

from pipeline.lm.loading import load_language_model


@pytest.fixture(scope="session")
def small_model(finished_project):
    """The small project's language model, with its tokenizer."""
    return load_language_model(str(finished_project.path / "model"), device="cpu")
