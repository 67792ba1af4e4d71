"""The campaign of senseless parameters: it tries every key, and tells what became of a case."""

from __future__ import annotations

import random

import pytest

from benchmarks.faults.cases import ACCEPTED, KILLED, REFUSED, SILENT, TRACEBACK
from benchmarks.faults.parameters import PRETRAIN, VALUES, Fault, first_readers, keys, single, verdict
from pipeline.params.loader import load_params
from pipeline.params.schema import flatten
from tests.project import REPOSITORY, STAGES


def test_every_key_is_tried_before_any_is_tried_twice() -> None:
    stated = dict(flatten(load_params(REPOSITORY / "params.yaml").to_dict()))
    declared = keys()
    assert set(stated) <= set(declared)
    faults = single(declared, first_readers(), random.Random(0))
    first = [next(iter(fault.values), fault.rename and fault.rename[0]) for fault in faults[: len(declared)]]
    assert sorted(first) == sorted(declared)
    assert {fault.stage for fault in faults} <= {*STAGES, PRETRAIN}
    assert len(faults) > 0.9 * len(declared) * len(VALUES)


def test_the_first_stage_that_reads_a_key() -> None:
    first = first_readers()
    read = {"analysis.neighbours": "analyze", "trainer.lr": "train", "dictionary.top_k": "initialize", "demo.seed": PRETRAIN}
    read |= {"dataset.split": "tokenize_corpus", "tracking.run_name": "train", "model.device": "generate_activations"}
    assert {key: first(key) for key in read} == read


@pytest.mark.parametrize(
    ("code", "stderr", "senseless", "wanted"),
    [
        (0, "done\n", False, ACCEPTED),
        (0, "done\n", True, SILENT),
        (2, "tokenize: text\nerror: model.revision: no\n", True, REFUSED),
        (2, "error: params.yaml: a: no\nerror: params.yaml: b: no\n", True, REFUSED),
        (2, "error: a: no\nerror: b: no\n", True, TRACEBACK),
        (2, "error: a: no\nmore\n", True, TRACEBACK),
        (2, "error: out of memory (bad_alloc); lower it\n", True, KILLED),
        (1, "Traceback ...\nValueError: no\n", True, TRACEBACK),
        (1, "Traceback ...\nMemoryError\n", False, KILLED),
        (-9, "", False, KILLED),
    ],
)
def test_verdicts(code: int, stderr: str, senseless: bool, wanted: str) -> None:
    assert verdict(Fault("area", "name", STAGES[0], senseless=senseless), code, stderr) == wanted
