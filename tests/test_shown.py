"""What a notebook shows of each public object: what it is in a line, no bare address and no list of numbers."""

from __future__ import annotations

import warnings

import pytest
import torch

from pipeline import api
from tests.messages import says
from tests.project import D_MODEL, make_model

HOOK = "blocks.0.hook_resid_post"
TEXTS = [f"the cat number {i} sat on the mat and saw {i * 7 % 13} dogs" * 3 for i in range(200)]
TRAINER = {"total_training_tokens": 2048, "lr": 1e-3}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """{what it is: an object of every public class}."""
    place = tmp_path_factory.mktemp("shown")
    make_model(place / "model")
    model = api.load_language_model(place / "model", device="cpu")
    part = api.load_language_model(place / "model", device="cpu", hook_points=[HOOK])
    stream = api.stream_activations(model, TEXTS, [HOOK], total_tokens=2048, context_size=16, batch_size=128, buffer_size=1024)
    store = api.write_activations(stream, place / "stores")
    fields = {"d_sae": 32, "top_k": 4}
    result = api.fit(
        store.read(HOOK, 0, 1024).float(), dictionary=fields | {"hook_point_in": HOOK}, trainer=TRAINER, batch_size=128
    )
    sae = result.inference
    run = api.run_with_dictionaries(model, "the cat sat", sae)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the effects of so small a model cannot be trusted
        effects = api.attribute(model, sae, "the cat sat", "loss", method="attribution_patching")
    batch = torch.randn(8, D_MODEL)
    return {
        "LanguageModel": model,
        "a part of one": part,
        "TokenTexts": model.token_text,
        "ActivationStream": stream,
        "LiveActivations": stream.activations,
        "ActivationStore": store,
        "FitResult": result,
        "Dictionary": sae,
        "ModelRun": run,
        "DictionaryRun": run.only,
        "Output": model.run("the cat sat"),
        "Output of one token": model.run([5]),
        "FeatureAttribution": effects,
        "Effect": effects.top(1)[0],
        "Inspection": api.inspect_text("the cat sat", sae, model),
        "Steering": api.steer("the cat sat", sae, model, 3, 1.0, n_tokens=2),
        "TopFeatures": api.top_features(model, sae, "the cat sat"),
        "TopFeature": api.top_features(model, sae, "the cat sat").features[0],
        "Export": api.export_dictionary(sae, place / "exported", activations=store.read(HOOK, 0, 64).float()),
        "LossReport": api.loss(result.dictionary, batch),
    }


def test_every_public_class_is_shown(shown: dict[str, object]) -> None:
    classes = [getattr(api, name) for name in api.__all__ if isinstance(getattr(api, name), type) and name != "PROJECT"]
    assert [cls.__name__ for cls in classes if not any(isinstance(each, cls) for each in shown.values())] == []
    for name, each in shown.items():
        said = repr(each)
        assert " at 0x" not in said, name
        assert "tensor(" not in said, name
        assert len(said) < 1500, name


def test_what_is_said(shown: dict[str, object]) -> None:
    model = repr(shown["LanguageModel"])
    says(model, "LanguageModel('", "huggingface", "layers=2", f"d_model={D_MODEL}", "vocabulary=300", "float32", "cpu")
    assert f"context length={shown['LanguageModel'].max_context}" in model  # type: ignore[attr-defined]
    says(repr(shown["a part of one"]), "layers=2 (the first 1 loaded)")
    for name in ("ActivationStore", "LiveActivations"):
        says(repr(shown[name]), f"{name}('", "2,048 tokens", f"{HOOK}: {D_MODEL}", "float32")
    says(repr(shown["ActivationStream"]), "batches of 128", "LiveActivations(", "LanguageModel(")
    says(repr(shown["FitResult"]), "sae(", "log steps")
    says(repr(shown["DictionaryRun"]), "tokens kept", HOOK)
    says(repr(shown["Output"]), "Output(tokens [1, 3]", "nats a token")
    says(repr(shown["Output of one token"]), "no loss")
    says(repr(shown["Inspection"]), "tokens", "active of [32] on each")
    says(repr(shown["LossReport"]), "total", "l_rec")
