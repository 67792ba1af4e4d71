from __future__ import annotations

import pytest
import torch

from pipeline.lm.loading import load_language_model
from tests.evaluation.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def model(tiny_path):
    return load_language_model(str(tiny_path), device="cpu")


@pytest.fixture(scope="session")
def module(tiny_path):
    """The same model as transformers gives it, for naive runs."""
    return _plain(tiny_path)


@pytest.fixture(scope="session")
def exact(tiny_path):
    """Both of the above in float64, so that the metrics' own rounding is all that differs."""
    return _exact(tiny_path)


@pytest.fixture(scope="session")
def tuned_path(tiny_path, tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tuned") / "model", seed=8, parent=tiny_path)


@pytest.fixture(scope="session")
def tuned(tuned_path):
    """Another checkpoint of the model."""
    return load_language_model(str(tuned_path), device="cpu")


@pytest.fixture(scope="session")
def tuned_module(tuned_path):
    return _plain(tuned_path)


@pytest.fixture(scope="session")
def exact_tuned(tuned_path):
    """The other checkpoint in float64."""
    return _exact(tuned_path)


def _exact(path):
    from pipeline.lm.huggingface import HuggingFaceModel
    from pipeline.lm.source import resolve_model

    return HuggingFaceModel(resolve_model(path), _plain(path).double()), _plain(path).double()


def _plain(path):
    from transformers import GPTNeoXForCausalLM

    return GPTNeoXForCausalLM.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32).eval()
