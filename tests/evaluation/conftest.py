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
    from transformers import GPTNeoXForCausalLM

    return GPTNeoXForCausalLM.from_pretrained(tiny_path, attn_implementation="sdpa", dtype=torch.float32).eval()
