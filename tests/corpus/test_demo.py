"""The embedded corpus: same install, same bytes; no block in both splits."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest

from pipeline.corpus.demo import corpus_digest, demo_documents, source_files
from pipeline.corpus.document import held_out
from pipeline.errors import DataError
from tests.messages import saying

IS_HELD_OUT = partial(held_out, fraction=0.05, seed=0)


def test_yield_and_split() -> None:
    documents = list(demo_documents(["numpy", "networkx"], IS_HELD_OUT))
    characters = sum(len(d.text) for d in documents)
    # Ranges, not figures: releases of the packages differ.
    assert 1_000_000 < characters < 4_000_000
    train = [d for d in documents if not IS_HELD_OUT(d.key)]
    held = [d for d in documents if IS_HELD_OUT(d.key)]
    assert 0.02 < len(held) / len(documents) < 0.09
    train_blocks = {block.lower() for d in train for block in d.text.split("\n")}
    held_blocks = {block.lower() for d in held for block in d.text.split("\n")}
    assert not train_blocks & held_blocks
    every = [block.lower() for d in documents for block in d.text.split("\n")]
    assert len(every) == len(set(every))
    assert all(len(d.text) >= 200 for d in documents)


def test_same_bytes_in_another_process() -> None:
    here = corpus_digest(demo_documents(["networkx"], IS_HELD_OUT))
    code = (
        "from functools import partial; from pipeline.corpus.demo import *; from pipeline.corpus.document import held_out;"
        "print(corpus_digest(demo_documents(['networkx'], partial(held_out, fraction=0.05, seed=0))))"
    )
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here


def test_no_tests_and_nothing_vendored() -> None:
    keys = [key for package in ("stdlib", "numpy") for key, _ in source_files(package)]
    assert keys == sorted(set(keys[: len(keys)]), key=keys.index)
    assert not [key for key in keys if "/tests/" in key or "/test/" in key or "_vendor/" in key]


def test_missing_package() -> None:
    with pytest.raises(DataError, match=saying("package 'no-such-package'", "installed")):
        list(demo_documents(["no-such-package"], IS_HELD_OUT))
