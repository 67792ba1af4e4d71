"""params.yaml's comments, docs/params.md and docs/params.schema.json are what the declaration says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipeline import registry
from pipeline.errors import ParamsError
from pipeline.params.documents.__main__ import documents, main
from pipeline.params.documents.comments import COLUMN, commented, comments
from pipeline.params.documents.declared import sections
from pipeline.params.documents.json_schema import as_text, json_schema
from pipeline.params.documents.words import names, whole
from pipeline.params.fields import Limits, param
from pipeline.params.losses import SPARSITY_LOSSES, SparsityLossDeclaration
from pipeline.params.presets import apply_preset, overlay, preset_names, read_preset
from pipeline.params.reading import Yaml12Loader, read_mapping
from pipeline.params.schema import flatten
from tests.closure import ROOT
from tests.messages import saying
from tests.params.changes import ABSENT, CLT, DEFAULTS, LORSA, TRANSCODER, changed, faults
from tests.params.json_schema import complaints

PARAMS, SCHEMA = ROOT / "params.yaml", ROOT / "docs" / "params.schema.json"
CROSSCODER = {
    **CLT,
    "dictionary.kind": "crosscoder",
    "dictionary.hook_points_out": None,
    "dictionary.crosscoder_norm": "joint",
}


@pytest.fixture(autouse=True)
def _only_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other packages add, where some are installed, is not in the committed files."""
    monkeypatch.setattr(registry, "_entry_points", lambda group: {})


def test_the_files_are_what_the_command_writes() -> None:
    for path, text in documents(ROOT).items():
        # `dvc exp run -S` may have moved comments of params.yaml.
        same = re.sub(" +", " ", path.read_text()) == re.sub(" +", " ", text)
        assert same, f"{path.name} is not what the declaration says; run: python -m pipeline.params.documents"


def test_the_command_writes_what_differs_and_keeps_values(tmp_path, monkeypatch) -> None:
    (tmp_path / "params.yaml").write_text(re.sub(r" +# .*", "", PARAMS.read_text()))
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(main, catch_exceptions=False)
    assert first.output.split("\n") == [
        *(f"{name} is written" for name in ("params.yaml", "docs/params.schema.json", "docs/params.md", "docs/settings.md")),
        "",
    ]
    assert (tmp_path / "docs" / "params.schema.json").read_text() == SCHEMA.read_text()
    assert read_mapping("params.yaml") == read_mapping(PARAMS)
    assert CliRunner().invoke(main, catch_exceptions=False).output == ""


def test_every_key_is_explained_once() -> None:
    assert list(flatten(read_mapping(PARAMS))), "nothing to explain"
    written = comments()
    assert {key for key, _ in flatten(read_mapping(PARAMS))} <= set(written)
    for place, section in sections():
        assert section.about, place
        for key in section.keys:
            assert key.about, f"{place}.{key.name}: give param(..., about=...)"
            assert not key.about.endswith("."), f"{place}.{key.name}"
            texts = {
                field.metadata["about"]
                for cls in section.classes.values()
                for parent in cls.__mro__
                if (field := getattr(parent, "__dataclass_fields__", {}).get(key.name)) is not None
            } - {""}
            assert texts == {key.about}, f"{place}.{key.name}: explained more than once"


def test_an_explanation_that_names_choices_names_all_of_them() -> None:
    for place, section in sections():
        for key in section.keys:
            for form in key.forms.values():
                named = [str(choice) for choice in form.limits.choices or () if names(key.about, str(choice))]
                if " | " in key.about and form.limits.choices:
                    assert len(named) == len(list(form.limits.choices)), f"{place}.{key.name}"


def test_comments_keep_the_layout() -> None:
    text = "\n".join(
        [
            "# of the file, with lr: 3",
            "",
            "seed: 0",
            "dataset:   # old",
            "  # above a key",
            "  split: 'a # b'",
            '  text_field: "x" # old # older',
            "  unknown: 1 # mine",
            "trainer:",
            "  betas:",
            "  - 0.9 # first",
            "  - 0.99",
            "  lr: auto",
            "",
        ]
    )
    written = commented(text)
    lines = written.split("\n")
    assert lines[0] == "# of the file, with lr: 3"
    assert lines[2] == f"{'seed: 0'.ljust(COLUMN)} # {comments()['seed']}"
    assert lines[3] == f"{'dataset:'.ljust(COLUMN)} # the text"
    assert lines[4] == "  # above a key"
    assert lines[5].startswith("  split: 'a # b' ")
    assert lines[6] == '  text_field: "x"'.ljust(COLUMN) + " # " + comments()["dataset.text_field"]
    assert lines[7] == "  unknown: 1 # mine"
    assert lines[10:12] == ["  - 0.9 # first", "  - 0.99"]
    assert yaml.load(written, Loader=Yaml12Loader) == yaml.load(text, Loader=Yaml12Loader)
    assert commented(written) == written
    with pytest.raises(ParamsError, match=saying("comments", "values", "one line")):
        commented("dataset:\n  split: |\n    some\n    text\n")


def test_comments_name_kinds_choices_and_ranges() -> None:
    written = comments()
    assert written["dictionary.d_qk_head"] == "lorsa: width of a query and of a key"
    assert written["dictionary.kind"] == "kind of dictionary: clt | crosscoder | lorsa | sae | transcoder"
    assert written["trainer.optimizer"] == "adam | sparseadam (entries whose gradient is 0 are not updated)"
    assert written["trainer.amp_dtype"].endswith(": float32 | bfloat16 | float16")
    assert written["trainer.betas"].endswith(", each at least 0, below 1")
    assert written["trainer.lr_warm_up_steps"].endswith(": steps (integer) or fraction")
    assert written["trainer.dead_threshold"].endswith(": tokens (integer) or share of the run")
    assert written["activations.buffer_shuffle"] == "the order of the rows in the store"
    assert written["tracking"] == "MLflow and Weights & Biases; no output depends on them"
    assert written["tracking.wandb"] == "runs in Weights & Biases, beside MLflow or in its place"


def test_what_a_key_takes_in_words() -> None:
    assert whole(int | None, Limits(at_least=1)) == "an integer, at least 1, or null"
    assert whole(float | str, Limits(more_than=0, words=("auto",))) == "a number or 'auto', above 0"
    assert whole(tuple[int, ...] | None, Limits(at_least=0)) == "a list of integers, each at least 0, or null"
    assert whole(str, Limits(choices=("a", "b"))) == "`a`, `b`"
    assert whole(float, Limits(more_than=0, less_than=1)) == "a number, between 0 and 1"


def test_the_page_has_every_key_and_says_whose_it_is() -> None:
    page = (ROOT / "docs" / "params.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    of_names = len(["models.NAME"] * 3) + len(["dataset.sources.NAME"] * 9)
    assert len(rows) == len({key for key, _ in flatten(read_mapping(PARAMS))}) + of_names
    row = next(row for row in rows if row[0] == "| `hook_point_out`")
    assert row[1] == "lorsa, sae, transcoder"
    assert row[3] == "lorsa, sae: `null`; transcoder: `blocks.2.hook_mlp_out`"
    assert "| `lr` | a number or 'auto', above 0 | `0.0004` | learning rate" in page


def test_params_yaml_names_the_schema() -> None:
    first = PARAMS.read_text().partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA.relative_to(ROOT)}"
    schema = json.loads(SCHEMA.read_text())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["trainer"]["properties"]["k_aux"] == {
        "description": "dead features per token that AuxK uses",
        "default": 512,
        "type": "integer",
        "minimum": 1,
    }


def test_patterns_are_such_as_every_dialect_has() -> None:
    found = re.findall(r'"pattern": "(.*?[^\\])"', SCHEMA.read_text())
    assert found
    assert [pattern for pattern in found if re.search(r"\(\?[^:]|\\[AZz]", pattern)] == []


@pytest.mark.parametrize("name", [None, *preset_names()])
def test_the_schema_accepts_params_yaml_and_every_preset(name: str | None) -> None:
    stated = read_mapping(PARAMS)
    schema = json.loads(SCHEMA.read_text())
    assert complaints(schema, overlay(stated, read_preset(name)) if name else stated) == []
    if name:
        assert complaints(schema, apply_preset(name, PARAMS).to_dict()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        CLT,
        CROSSCODER,
        LORSA,
        TRANSCODER,
        {"trainer.lr": "auto", "trainer.betas": [0, 0.5], "trainer.clip_grad_norm": 1, "model.prepend_bos": True},
        {"trainer.lr_warm_up_steps": 0, "trainer.lr_cool_down_steps": 0.0, "trainer.dead_threshold": 1.0},
        {"trainer.matryoshka_widths": [2, 16, 64]},
        {"trainer.matryoshka_widths": [0.0625, 1.0]},
        {"model.device": "cuda:1", "norm.tokens": None, "activations.max_norm_factor": None},
        {"dictionary.n_ctx": None, "dictionary.old_context_len": 8192, "dictionary.hook_points_in": None},
        {**CLT, "dictionary.skip": None, "dictionary.use_glu_encoder": False},
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(changes: dict[str, Any]) -> None:
    assert faults(changes) == {}
    assert complaints(json_schema(), changed(changes)) == []


REFUSED: list[tuple[dict[Any, Any], str]] = [
    ({"trainer.warmup_step": 5}, "trainer.warmup_step: false"),
    ({"lr": 1e-3}, "lr: false"),
    ({"activations.buffer_shuffle.seed": 1}, "activations.buffer_shuffle.seed: false"),
    ({"trainer.lr": ABSENT}, "trainer.lr: required"),
    ({"fold": ABSENT}, ".fold: required"),
    ({"dictionary.skip": ABSENT}, "dictionary.skip: required"),
    ({"dictionary.kind": ABSENT}, "dictionary.kind: required"),
    ({"dictionary.kind": "lorsa"}, "dictionary.n_ctx: required"),
    ({"seed": True}, "seed: type"),
    ({"seed": 1.5}, "seed: type"),
    ({"seed": -1}, "seed: minimum"),
    ({"trainer.eps": "1e-3"}, "trainer.eps: type"),
    ({"trainer.eps": None}, "trainer.eps: type"),
    ({"trainer.eps": [1]}, "trainer.eps: type"),
    ({"trainer": None}, "trainer: type"),
    ({"determinism": "yes"}, "determinism: type"),
    ({"determinism": 1}, "determinism: type"),
    ({"model.revision": 12345}, "model.revision: type"),
    ({"model.revision": "None"}, "model.revision: not"),
    ({"dictionary.sae_name": "nil"}, "dictionary.sae_name: not"),
    ({"model.device": "gpu"}, "model.device: pattern"),
    ({"model.prepend_bos": "atuo"}, "model.prepend_bos: anyOf"),
    ({"model.prepend_bos": None}, "model.prepend_bos: anyOf"),
    ({"trainer.lr": 0}, "trainer.lr: anyOf"),
    ({"trainer.lr": "1e-3"}, "trainer.lr: anyOf"),
    ({"trainer.betas": [0.9]}, "trainer.betas: minItems"),
    ({"trainer.betas": [0.9, 0.9, 0.9]}, "trainer.betas: maxItems"),
    ({"trainer.betas": [0.9, 1]}, "trainer.betas: exclusiveMaximum"),
    ({"trainer.betas": 0.9}, "trainer.betas: type"),
    ({"activations.ignore_token_ids": [0, -1]}, "activations.ignore_token_ids: minimum"),
    ({"activations.hook_points": ["resid"]}, "activations.hook_points: pattern"),
    ({"dataset.eval_fraction": 0}, "dataset.eval_fraction: exclusiveMinimum"),
    ({"dataset.split": " "}, "dataset.split: pattern"),
    ({"trainer.target_l0_gain": 2.5}, "trainer.target_l0_gain: maximum"),
    ({"trainer.lr_warm_up_steps": -1}, "trainer.lr_warm_up_steps: anyOf"),
    ({"trainer.lr_warm_up_steps": 1.5}, "trainer.lr_warm_up_steps: anyOf"),
    ({"trainer.dead_threshold": 0}, "trainer.dead_threshold: anyOf"),
    ({"trainer.dead_threshold": "0.03"}, "trainer.dead_threshold: anyOf"),
    ({"trainer.matryoshka_widths": [0, 32]}, "trainer.matryoshka_widths: anyOf"),
    ({"trainer.matryoshka_widths": [0.5, None]}, "trainer.matryoshka_widths: anyOf"),
    ({"trainer.sparsity_loss_type": "tanhquad"}, "trainer.sparsity_loss_type: enum"),
    ({"trainer.decoder_constraint": None}, "trainer.decoder_constraint: enum"),
    ({"dictionary.kind": "saee"}, "dictionary.kind: enum"),
    ({"dictionary.act_fn": "batch_topk"}, "dictionary.act_fn: enum"),
    ({"dictionary.name": "a/b"}, "dictionary.name: pattern"),
    ({"dictionary.hook_point_in": "block.2.x"}, "dictionary.hook_point_in: pattern"),
    ({"dictionary.hook_point_in": "blocks.2.ln2.hook_out\n"}, "dictionary.hook_point_in: pattern"),
    ({"dictionary.hook_point_in": None}, "dictionary.hook_point_in: type"),
    ({"dictionary.n_ctx": 128}, "dictionary.n_ctx: enum"),
    ({"dictionary.rotary_base": 500.0}, "dictionary.rotary_base: enum"),
    ({**CLT, "dictionary.hook_point_in": "blocks.2.hook_resid_post"}, "dictionary.hook_point_in: enum"),
    ({**CLT, "dictionary.skip": True}, "dictionary.skip: enum"),
    ({**LORSA, "dictionary.normalization_type": "BN"}, "dictionary.normalization_type: enum"),
    ({"models": {}}, "models: minProperties"),
    ({"models": {"1st": {"model_name": "x"}}}, "models: pattern"),
    ({"models": {"other": {"revision": None}}}, "models.other.model_name: required"),
    ({"models": {"other": {"model_name": "x", "dtype": "float32"}}}, "models.other.dtype: false"),
]


@pytest.mark.parametrize(("changes", "complaint"), REFUSED, ids=[text for _, text in REFUSED])
def test_the_schema_refuses_what_the_loader_refuses(changes: dict[Any, Any], complaint: str) -> None:
    assert faults(changes)
    assert complaint in complaints(json_schema(), changed(changes))


def test_a_losses_own_key_is_documented_where_the_loss_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"strength": (float, param(1.5, more_than=0, about="how strong it is"))}
    loss = SparsityLossDeclaration("documented", "nowhere:LOSS", fields=own)
    monkeypatch.setitem(SPARSITY_LOSSES._declared, "documented", loss)
    assert comments()["trainer.strength"] == "documented: how strong it is"
    schema = json_schema()
    chosen = {"trainer.sparsity_loss_type": "documented"}
    assert complaints(schema, changed({**chosen, "trainer.strength": 2})) == []
    assert complaints(schema, changed({**chosen, "trainer.strength": 0})) == ["trainer.strength: exclusiveMinimum"]
    assert complaints(schema, changed(chosen)) == ["trainer.strength: required"]
    assert complaints(schema, changed({"trainer.strength": 2})) == ["trainer.strength: false"]
    assert complaints(schema, DEFAULTS) == []


def test_json_is_written_as_it_is_read() -> None:
    value = json_schema()
    text = as_text(value)
    assert json.loads(text) == value
    assert max(map(len, text.splitlines())) < 260
