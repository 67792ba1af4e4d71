"""The command: what it prints of a small project, and its errors."""

from __future__ import annotations

import shutil
from contextlib import chdir

import pytest
from click.testing import CliRunner

from pipeline.analysis import terminal
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.analysis.labels import feature_labels, known_features
from pipeline.analysis.loading import load_for_analysis
from pipeline.analysis.search import features_of_word
from stages.inspect import main
from tests.messages import between_ends, says
from tests.project import D_MODEL, Project

TEXT = "the cat sat on the mat"


def run(project: Project, *arguments: str, typed: str | None = None) -> tuple[int, str, str]:
    with chdir(project.path):
        result = CliRunner().invoke(main, list(arguments), input=typed)
    return result.exit_code, result.stdout, result.stderr


def test_tokens_features_and_steering(finished_project: Project) -> None:
    code, out, err = run(finished_project, "--text", TEXT + "\n", "--top", "2")
    lines = out.splitlines()
    assert code == 0
    assert err.startswith("inspect: loads the language model model (")
    assert lines[0].startswith("SAE main, topk 4, 64 features, blocks.0.hook_resid_post of model")
    assert lines[1].split()[:2] == ["0", "the"]
    assert next(line for line in lines if line.startswith("    6")).split()[1] == "\\n"
    labels = feature_labels(finished_project.path / "data" / "features", "none")
    assert lines[-1].split(maxsplit=1)[1] == labels[lines[-1].split()[0]]
    feature = lines[1].split()[2]
    code, out, _ = run(finished_project, "--text", TEXT, "--feature", feature)
    assert code == 0
    assert f"feature {feature}: active on " in out
    assert "strongest below" not in out
    assert (
        "tokens, the 1 strongest below (--top)"
        in run(finished_project, "--text", "the cat the", "--feature", feature, "--top", "1")[1]
    )
    assert "[the]" in out
    assert "promotes" in out
    code, out, _ = run(finished_project, "--text", TEXT, "--steer", feature, "--continue", "3")
    assert code == 0
    assert "steered: loss of the text" in out
    assert f"feature {feature} added with strength" in out


def test_features_by_a_word(finished_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every feature on whose strongest contexts the word has the strongest token, by looking at each place of the text."""

    def no_model(*_: object, **__: object) -> None:
        raise AssertionError("no language model is needed")

    monkeypatch.setattr(terminal, "load_for_analysis", no_model)
    store = FeatureStore(finished_project.path / "data" / "features")
    tokens = [str(context["texts"][context["peak"]]) for context in store.contexts(0) if context["band"] == "top"]
    for word in {tokens[0], tokens[-1].upper(), "".join(store.contexts(0)[0]["texts"])[-9:]}:
        wanted: dict[str, int] = {}
        for row in store.features(["feature", "name"]):
            n = 0
            for context in store.contexts(row["feature"]):
                before, peak = len("".join(context["texts"][: context["peak"]])), len(context["texts"][context["peak"]])
                text = "".join(context["texts"]).lower()
                starts = [at for at in range(len(text)) if text[at:].startswith(word.strip().lower())]
                overlaps = [set(range(at, at + len(word.strip()))) & set(range(before, before + peak)) for at in starts]
                n += context["band"] == "top" and any(overlaps)
            if n:
                wanted[row["name"]] = n
        found = features_of_word(word, store.folder)
        assert {hit.name: hit.n for hit in found if hit.n} == wanted, word
        shares = [hit.n / hit.of for hit in found if hit.of]
        assert shares == sorted(shares, reverse=True)
        code, out, _ = run(finished_project, "--search", word)
        assert code == 0
        if found:
            assert out.splitlines()[0].split()[:2] == [found[0].name, str(found[0].n)]
    assert "no feature" in run(finished_project, "--search", "zzzz no such word")[1]
    assert run(finished_project, "--search", " ")[0] == 2


@pytest.mark.parametrize("option", ["--feature", "--steer"])
def test_a_feature_out_of_range_is_refused_before_a_model_is_loaded(
    finished_project: Project, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def no_model(*_: object) -> None:
        raise AssertionError("the language model was loaded")

    monkeypatch.setattr("pipeline.analysis.loading.load_stated", no_model)
    code, _, err = run(finished_project, "--text", TEXT, option, "99999")
    assert code == 2
    says(err, "feature '99999'", "out of range", "64 features")


def test_a_file(finished_project: Project, tmp_path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert run(finished_project, "--file", str(tmp_path / "text.txt"))[1] == run(finished_project, "--text", TEXT)[1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ("--text", "--file")),
        (["--text", "a", "--file", "b"], ("--text", "--file")),
        (["--text", "a", "--lines"], ("--text", "--lines")),
        (["--file", "nothing.txt"], ("nothing.txt:",)),
        (["--text", TEXT, "--feature", "64"], ("feature '64':", "range")),
        (["--text", TEXT, "--inference", "nowhere"], ("nowhere",)),
        (["--text", ""], ("no token",)),
    ],
)
def test_errors(finished_project: Project, arguments: list[str], parts: tuple[str, ...]) -> None:
    code, _, err = run(finished_project, *arguments)
    assert code == 2
    says(err, *parts)
    (line,) = between_ends(err)
    assert line.startswith("error: ")


def test_the_strength_is_that_of_the_feature_store(finished_project: Project, tmp_path) -> None:
    """Without a store, twice the largest on the text, so that a silent feature needs a stated one."""
    place = finished_project.path / "data" / "features"
    known = known_features(place)
    out = run(finished_project, "--text", TEXT, "--top", "99")[1]
    active = {line.split()[2] for line in out.splitlines()[1:] if line.startswith("    0")}
    feature = next(name for name in known.largest if name in active)
    found = run(finished_project, "--text", TEXT, "--steer", feature, "--continue", "2")[1]
    assert f"feature {feature} added with strength {known.largest[feature]:.4g} at every token (its largest" in found
    assert known.labels[feature] in found
    alone = finished_project.copy(tmp_path / "alone")
    shutil.rmtree(alone.path / "data" / "features")
    inspection = run(alone, "--text", TEXT, "--top", "99")[1]
    shown = {cell for line in inspection.splitlines()[1:] for cell in line.split()[2::2]}
    silent = next(str(i) for i in range(64) if str(i) not in shown)
    code, _, err = run(alone, "--text", TEXT, "--steer", silent)
    assert code == 2
    says(err, f"feature {silent}", "--strength")
    assert "(twice its largest activation on the text)" in run(alone, "--text", TEXT, "--steer", feature, "--continue", "2")[1]


def test_several_texts_load_the_model_once(finished_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    single = [run(finished_project, "--text", text, "--top", "2")[1] for text in (TEXT, "the dog ran")]
    loaded = []
    monkeypatch.setattr(
        terminal, "load_for_analysis", lambda *args, **given: loaded.append(1) or load_for_analysis(*args, **given)
    )
    several = run(finished_project, "--text", TEXT, "--text", "the dog ran", "--top", "2")[1]
    assert several == single[0] + "\n" + single[1].partition("\n")[2]
    assert loaded == [1]
    typed = run(finished_project, "--lines", "--top", "2", typed=f"{TEXT}\n\nthe dog ran\n")[1]
    assert typed == several
    assert loaded == [1, 1]


def test_a_dictionary_of_other_models_only(project: Project) -> None:
    """A crosscoder whose hook points all have an alias: its first model is meant, or the one that is named."""
    from pipeline.dictionaries.build import build_dictionary
    from pipeline.dictionaries.saving import save_dictionary

    hooks = ["one:blocks.0.hook_resid_post", "two:blocks.0.hook_resid_post"]
    config = {"kind": "crosscoder", "name": "main", "hook_points_in": hooks, "d_in": D_MODEL, "d_sae": 40}
    made = build_dictionary({**config, "act_fn": "topk", "top_k": 40}, seed=0)
    norm = {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}
    save_dictionary(made.fold(dict.fromkeys(hooks, norm)), project.path / "data" / "inference" / "main")
    models = {name: {"model_name": "model", "revision": None} for name in ("one", "two")}
    project.set(models=models, **{"dictionary__kind": "crosscoder", "dictionary__hook_point_in": None,
        "dictionary__hook_points_in": hooks, "dictionary__apply_b_dec_to_input": False})  # fmt: skip
    shown = {}
    for alias in ("one", "two"):
        code, out, err = run(project, "--text", TEXT, "--feature", "3", "--alias", alias)
        assert code == 0, err
        assert "promotes" in out
        shown[alias] = out
    assert shown["one"] != shown["two"]
    assert run(project, "--text", TEXT, "--feature", "3")[1] == shown["one"]
    says(run(project, "--text", TEXT)[2], "warning: features are shown without labels", "another dictionary")
    code, out, err = run(project, "--text", TEXT, "--steer", "3", "--strength", "5", "--continue", "2")
    assert code == 0, err
    assert "steered: loss of the text" in out
    code, _, err = run(project, "--text", TEXT, "--steer", "3", "--strength", "5", "--alias", "tow")
    assert code == 2
    assert "unknown model 'tow'; did you mean 'two'?" in err


def test_ctrl_c_is_one_line(finished_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.analysis.terminal.inspect_text", interrupted)
    code, _, err = run(finished_project, "--text", TEXT)
    assert (code, between_ends(err)) == (130, ["error: interrupted"])
