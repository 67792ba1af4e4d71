"""Kept features with notes, colours that are chosen, words of several tokens, explanations beside the dashboard, and noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.feature_columns import INACTIVE, TOP
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dashboard.chunks import variety, words_of
from pipeline.dashboard.folder import EXPLANATIONS, style, write_dashboard, write_explanations
from pipeline.dashboard.run import explanations_at
from tests.dashboard import synthetic
from tests.dashboard.browser import NEEDS_CHROMIUM, color_scheme, show, until

EXPLAINED = {"8": {"explanation": "eighth <b>", "detection": 0.91, "fuzzing": None}, "no such": {"explanation": "x"}}


def context(*texts: str, peak: int, band: str = TOP) -> dict[str, Any]:
    return {"texts": list(texts), "tokens": [*range(len(texts))], "peak": peak, "band": band}


@pytest.mark.parametrize(
    ("texts", "peak", "words"),
    [
        ((" on", " De", "bian", " and"), 1, ["Debian"]),
        ((" on", " De", "bian", " and"), 2, ["Debian"]),
        (("De", "b", "ian", ","), 1, ["Debian"]),
        ((" Debian", " and"), 0, []),  # a word of one token is among the tokens
        ((" x", "(", "y"), 1, []),
        ((" caf", "\u00e9", "s\n"), 0, ["caf\u00e9s"]),
        (("a\n", "b"), 1, []),
        ((" snake", "_", "case", ".", "x"), 0, ["snake_case"]),
    ],
)
def test_words_of_several_tokens(texts: tuple[str, ...], peak: int, words: list[str]) -> None:
    assert words_of([context(*texts, peak=peak)]) == words


def test_the_commonest_word_is_first_and_contexts_without_the_feature_have_none() -> None:
    rare, often = context(" Ub", "untu", peak=0), context(" De", "bian", peak=1)
    assert words_of([rare, often, often, context(" Fe", "dora", peak=0, band=INACTIVE)]) == ["Debian", "Ubuntu"]


def test_variety_is_the_share_of_different_words_and_tokens_at_the_peaks() -> None:
    contexts = [
        context(" on", " De", "bian", peak=1),  # the word Debian, of two tokens
        context("Debian", peak=0),
        context(" DEBIAN", peak=0),
        context(" De", "b", "t", peak=0),  # Debt, which begins with the same token
        context(" ,", peak=0),
        context(" other", peak=0, band="75-100 %"),
        context(" none", peak=0, band=INACTIVE),
    ]
    assert variety(contexts) == 3 / 5
    assert variety(contexts[:3]) == 1 / 3
    assert variety(contexts[3:5]) == 1
    assert variety([context(" Slov", end, peak=0) for end in ("ak", "enia", "ene")]) == 1 / 3  # the piece of three words
    assert variety(contexts[4:]) is None  # one context alone
    assert variety([]) is None


def test_explanations_lie_where_stages_write_them() -> None:
    assert explanations_at() == f"interpretations/{EXPLANATIONS}"
    assert explanations_at("k8") == f"interpretations/k8/{EXPLANATIONS}"


def test_dark_colours_are_those_of_the_system_and_those_that_are_chosen() -> None:
    text = style()
    assert text.count(':root[data-theme="dark"] {') == 3  # of charts, of the dashboard, the scheme
    assert text.count(':root:not([data-theme="light"])') == 2
    assert "{ :root {" not in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kept")
    store = FeatureStore(synthetic.make_store(place / "store", 40, contexts=6))
    for name in ("explained", "other", "alone"):
        (place / name).mkdir()
        at = f"../{explanations_at()}"
        write_dashboard(place / name / "dashboard", store, synthetic.overview([40]), single=10, interpretations=at)
    other = FeatureStore(synthetic.make_store(place / "another", 39, contexts=2))
    for name, of in (("explained", store), ("other", other)):
        (place / name / "interpretations").mkdir()
        write_explanations(place / name / explanations_at(), of, EXPLAINED)
    return place


def text(driver: Any, selector: str = "#view") -> str:
    return str(driver.find_element("css selector", selector).text)


def background(driver: Any) -> str:
    return str(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))


@NEEDS_CHROMIUM
def test_the_colours_are_chosen_and_stay_chosen(driver: Any, folder: Path) -> None:
    page = folder / "alone" / "dashboard" / "index.html"
    show(driver, page, "#/")
    driver.execute_script("localStorage.clear()")
    show(driver, page, "#/")
    light = background(driver)
    color_scheme(driver, "dark")
    dark = background(driver)
    assert light != dark  # as the system has it
    button = driver.find_element("id", "theme")
    for name, wanted in (("light", light), ("dark", dark)):
        button.click()
        assert background(driver) == wanted
        assert button.get_attribute("title") == f"Colours: {name}"
    color_scheme(driver, "light")
    show(driver, page, "#/features")
    assert background(driver) == dark  # chosen, whatever the system has
    driver.find_element("id", "theme").click()
    assert background(driver) == light
    assert driver.execute_script("return localStorage.getItem('scopeline-theme')") == ""


@NEEDS_CHROMIUM
def test_features_are_kept_with_notes_and_go_through_a_file(driver: Any, folder: Path, tmp_path: Path) -> None:
    page = folder / "alone" / "dashboard" / "index.html"
    show(driver, page, "#/feature/9")
    driver.execute_script("localStorage.clear()")
    show(driver, page, "#/feature/9")
    driver.find_element("id", "note").send_keys("j k <b> a name")  # no key of the page
    assert text(driver, "h1").startswith("Feature 9")
    assert text(driver, '[data-tab="kept"]') == "Kept (1)"
    show(driver, page, "#/feature/3")
    driver.find_element("id", "keep").click()
    show(driver, page, "#/kept")
    assert text(driver, '[data-tab="kept"]') == "Kept (2)"
    rows = [row.text for row in driver.find_elements("css selector", ".kept tbody tr")]
    assert [row.split()[0] for row in rows] == ["3", "9"]
    assert rows[1].endswith("j k <b> a name")
    show(driver, page, "#/feature/3")
    driver.find_element("id", "keep").click()
    assert text(driver, '[data-tab="kept"]') == "Kept (1)"

    file = tmp_path / "kept.json"
    file.write_text(json.dumps({"store": "other", "features": {"5": "<script>alert(1)</script>", "4000": "x", "6": 7}}))
    show(driver, page, "#/kept")
    driver.find_element("id", "import").send_keys(str(file))
    until(driver, "document.getElementById('said').textContent")
    assert text(driver, "#said") == "1 added, 1 are not of this page; the file is of another feature store."
    assert [row.text.split()[0] for row in driver.find_elements("css selector", ".kept tbody tr")] == ["5", "9"]
    assert "<script>alert(1)</script>" in text(driver)
    file.write_text("[1")
    driver.find_element("id", "import").send_keys(str(file))
    until(driver, "document.getElementById('said').textContent.startsWith('This is no file')")
    saved = driver.execute_async_script(
        """const done = arguments[0], make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { URL.createObjectURL = make; blob.text().then(done); return "about:blank"; };
        HTMLAnchorElement.prototype.click = () => {};
        document.getElementById("export").click();"""
    )
    assert json.loads(saved)["features"] == {"5": "<script>alert(1)</script>", "9": "j k <b> a name"}


@NEEDS_CHROMIUM
def test_explanations_beside_the_dashboard_are_shown_of_the_same_store_alone(driver: Any, folder: Path) -> None:
    for name, shown in (("explained", True), ("other", False), ("alone", False)):
        page = folder / name / "dashboard" / "index.html"
        show(driver, page, "#/feature/8")
        assert ("eighth <b>" in text(driver)) == shown
        show(driver, page, "#/features?q=eighth")
        assert ("1 of 40" in text(driver, "#count")) == shown


@NEEDS_CHROMIUM
def test_a_word_of_two_tokens_is_found_and_an_effect_like_noise_is_marked(driver: Any, folder: Path) -> None:
    page = folder / "alone" / "dashboard" / "index.html"
    store = FeatureStore(folder / "store")
    words = {row["feature"]: words_of(contexts[row["feature"]]) for rows, contexts in store.blocks() for row in rows}
    feature, word = next((feature, own[0]) for feature, own in words.items() if own and own[0].endswith("ing"))
    show(driver, page, f"#/features?q={word}&show=all")
    first = driver.find_element("css selector", ".row").text.split()[0]
    assert first == str(feature)
    for row in store.features(["feature", "logit_kurtosis"]):
        if row["feature"] in (1, 2, 3):
            show(driver, page, f"#/feature/{row['feature']}")
            assert ("spread as noise would be" in text(driver)) == (row["logit_kurtosis"] < 1)
