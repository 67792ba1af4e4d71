"""The table of features in headless Chromium: what a search finds, what a link says, clicks, and windows of any width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dashboard.folder import write_dashboard
from tests.dashboard import synthetic
from tests.dashboard.browser import NEEDS_CHROMIUM, frames, show, size, wait_for

pytestmark = NEEDS_CHROMIUM
SCROLL_BARS = True


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table")
    store = synthetic.make_store(place / "store", 200, contexts=2)
    write_dashboard(place / "dashboard", FeatureStore(store), synthetic.overview([200]), single=20)
    return place / "dashboard" / "index.html"


@pytest.fixture(scope="module")
def density(page: Path) -> list[float]:
    return [row["density"] for row in FeatureStore(page.parent.parent / "store").features(["density"])]


def text(driver: Any, selector: str) -> str:
    return driver.find_element("css selector", selector).text


def rows(driver: Any) -> list[str]:
    return [row.get_attribute("hash") for row in driver.find_elements("css selector", ".row")]


def keys(driver: Any, *pressed: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*pressed).perform()


def search(driver: Any, query: str) -> None:
    box = driver.find_element("id", "search")
    box.clear()
    box.send_keys(query)


def test_the_first_click_after_typing_a_filter_opens_the_row(driver: Any, page: Path) -> None:
    show(driver, page, "#/features")
    driver.find_element("name", "low").send_keys("1")
    row = driver.find_elements("css selector", ".row")[1]
    route = row.get_attribute("hash")
    row.click()
    wait_for(driver, route)


def test_the_marks_of_the_page_can_be_searched(driver: Any, page: Path) -> None:
    show(driver, page, "#/features")
    for query in ("\u00b7word-8", " word-8"):
        search(driver, query)
        assert rows(driver)[0] == "#/feature/8"
        assert set(rows(driver)[1:]) == {f"#/feature/{i}" for i in range(80, 90) if i % 7}
    found = driver.execute_script(
        "const fit = (q) => fits({ lower: ['\\n', '\\t', '\\x0b', ' a', '<0xe2>', '\u00b7'] }, q);"
        "return ['\u21b5', '\u21e5', '\\\\x0b', 'A', '<0xE2>', '\u00b7'].map(fit)"
    )
    assert [row.index(2) for row in found] == [0, 1, 2, 3, 4, 5]


def test_the_very_token_comes_first_whatever_the_order(driver: Any, page: Path) -> None:
    for sort in ("", "&sort=feature", "&sort=-feature", "&sort=density"):
        show(driver, page, f"#/features?q=word-1{sort}")
        assert rows(driver)[0] == "#/feature/1"
        assert len(rows(driver)) > 1
    assert "Searched: feature numbers, \u201cfires on\u201d, \u201cpromotes\u201d" in text(driver, "#searched")


def test_all_tokens_of_a_feature_s_page_are_found_and_four_are_shown(driver: Any, page: Path) -> None:
    for query in ("next-8-9", "not-89", "\u00b7next-8-4"):
        show(driver, page, "#/features")
        search(driver, query)
        assert rows(driver)[0] == "#/feature/8"
    said = text(driver, "#searched")
    assert (
        "\u201cpromotes\u201d, suppressed tokens, with all tokens that a feature\u2019s page lists (the table shows 4" in said
    )
    row = driver.find_element("css selector", ".row")
    assert [chip.text for chip in row.find_elements("css selector", ".chip")][1:] == [f"\u00b7next-8-{k}" for k in range(4)]


def test_a_token_that_fires_is_before_one_that_is_promoted_or_suppressed(driver: Any, page: Path) -> None:
    show(driver, page, "#/features")
    order = driver.execute_script(
        """const columns = { t: [], lower: ["a", "b", "ab"], name: ["0", "1", "2", "3", "4"], feature: [0, 1, 2, 3, 4],
          fires: [[2], [1], [1], [0], [1]], words: [[], [], [], [], []], promotes: [[1], [1], [0], [1], [1]], suppresses: [[1], [0], [1], [1], [1]],
          density: [1, 1, 1, 1, 1], energy: [1, 1, 1, 1, 1], layer: [], explainText: [], byName: new Map() };
        Object.assign(state, usual, { query: "a" });
        return arranged(columns);"""
    )
    assert order == [3, 2, 1, 0]


def test_a_search_without_a_hit_says_so_and_what_the_filters_hide(driver: Any, page: Path, density: list[float]) -> None:
    show(driver, page, "#/features?q=a%20b")
    assert text(driver, ".rows .nothing") == "No feature here has \u201ca\u00b7b\u201d."
    assert text(driver, "#searched").startswith("Searched: feature numbers")
    keys(driver, "\ue007")  # Enter
    assert "Feature" not in text(driver, "#view")[:7]
    show(driver, page, "#/features?from=99")
    assert text(driver, ".rows .nothing") == "No feature passes the filters."
    show(driver, page, "#/features?q=word-19&show=dense")
    hits = [i for i in (19, *range(190, 200)) if i % 7]
    hidden = sum(density[i] <= 0.1 for i in hits)
    assert text(driver, "#searched").endswith(f"The filters hide {hidden} more.")


def test_the_link_has_all_that_is_shown(driver: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import Select

    show(driver, page, "#/features")
    driver.find_element("css selector", '[data-sort="density"]').click()
    driver.find_element("css selector", '[data-sort="density"]').click()
    Select(driver.find_element("name", "status")).select_by_value("")
    driver.find_element("name", "low").send_keys("1")
    driver.find_element("name", "high").send_keys("20")
    search(driver, "word")
    wanted = "#/features?q=word&sort=density&show=all&from=1&to=20"
    wait_for(driver, wanted)
    assert driver.execute_script("return location.hash") == wanted
    before = rows(driver)
    assert len(before) > 5
    driver.refresh()
    wait_for(driver, wanted)
    assert rows(driver) == before
    keys(driver, "\ue007")
    wait_for(driver, before[0])
    assert driver.title.startswith(f"Feature {before[0].split('/')[-1]} \u00b7 SAE made up")
    keys(driver, "o")
    wait_for(driver, "#/")
    assert driver.title == "SAE made up <b>"
    keys(driver, "f")
    wait_for(driver, wanted)
    assert driver.title.startswith("Features: word \u00b7 ")
    driver.find_element("id", "reset").click()
    wait_for(driver, "#/features")
    show(driver, page, "#/features?sort=nothing&show=odd&from=x")
    assert text(driver, "#count") == "171 of 200 features"


def top_words(page: Path) -> dict[int, set[str]]:
    """Of each active feature the words at the peaks of its strongest contexts; of the made-up tokens "ing" alone goes on with a word."""
    found: dict[int, set[str]] = {}
    for _, contexts in FeatureStore(page.parent.parent / "store").blocks():
        for feature, shown in contexts.items():
            for row in shown:
                if row["band"] == "top":
                    rest = [token == "ing" for token in row["texts"][row["peak"] + 1 :]]
                    word = row["texts"][row["peak"]] + "ing" * [*rest, False].index(False)
                    found.setdefault(feature, set()).add(word)
    return found


def top_tokens(page: Path) -> dict[int, set[str]]:
    """Of each active feature the tokens at the peaks of its strongest contexts."""
    found: dict[int, set[str]] = {}
    for _, contexts in FeatureStore(page.parent.parent / "store").blocks():
        for feature, shown in contexts.items():
            found[feature] = {row["texts"][row["peak"]] for row in shown if row["band"] == "top"}
    return found


def test_features_are_sorted_and_filtered_by_variety_and_maximum(driver: Any, page: Path) -> None:
    tokens = top_tokens(page)  # another word in each of the two contexts, and not of the same piece
    varied = [i for i, words in top_words(page).items() if len(words) == len(tokens[i]) == 2]
    assert set(range(5, 200, 11)) - set(range(0, 200, 7)) <= set(varied)
    assert len(varied) < 60
    show(driver, page, "#/features")
    driver.find_element("css selector", '[data-sort="variety"]').click()
    order = driver.execute_script("return table().then((c) => state.order.map((r) => c.feature[r]))")
    assert order[: len(varied)] == varied
    driver.find_element("name", "varied").send_keys("75")
    driver.find_element("name", "strong").send_keys("2")
    wanted = "#/features?sort=-variety&max=2&variety=75"
    wait_for(driver, wanted)
    assert text(driver, "#count") == f"{len(varied)} of 200 features"
    driver.refresh()
    wait_for(driver, wanted)
    assert text(driver, "#count") == f"{len(varied)} of 200 features"
    cells = driver.find_elements("css selector", ".row:first-child > span")
    assert "100 %" in [cell.text for cell in cells]
    strong = driver.find_element("name", "strong")
    strong.clear()
    strong.send_keys("2.5")
    wait_for(driver, "#/features?sort=-variety&max=2.5&variety=75")
    assert text(driver, "#count") == "0 of 200 features"
    same = next(i for i, words in top_words(page).items() if len(words) == 1)
    for feature, share in ((varied[0], "100 %"), (same, "50 %")):
        show(driver, page, f"#/feature/{feature}")
        assert f"variety\n{share}" in text(driver, ".stats")


def test_a_feature_outside_the_table_goes_on_by_number(driver: Any, page: Path) -> None:
    show(driver, page, "#/features?q=word-8")
    driver.execute_script("visit('#/feature/15')")
    wait_for(driver, "#/feature/15")
    links = driver.find_elements("css selector", "[data-step]")
    assert [link.get_attribute("hash") for link in links] == ["#/feature/14", "#/feature/16"]
    assert "by number" in links[0].get_attribute("title")
    keys(driver, "j")
    wait_for(driver, "#/feature/16")
    keys(driver, "k")
    wait_for(driver, "#/feature/15")
    show(driver, page, "#/feature/0")
    assert [link.get_attribute("hash") for link in driver.find_elements("css selector", "[data-step]")] == ["#/feature/1"]


def test_home_and_end_and_the_roles(driver: Any, page: Path) -> None:
    show(driver, page, "#/features")
    for key, last in (("\ue010", True), ("\ue011", False)):
        keys(driver, key)
        frames(driver)  # what is scrolled to is drawn
        chosen = driver.find_element("css selector", ".row.chosen")
        n = driver.execute_script("return state.order.length")
        assert driver.execute_script("return state.chosen") == (n - 1 if last else 0)
        assert chosen.get_attribute("aria-selected") == "true"
        listbox = driver.find_element("css selector", '[role="listbox"]')
        assert listbox.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
        assert chosen.get_attribute("role") == "option"
        head, rect, box = (driver.find_element("css selector", s).rect for s in (".head", ".row.chosen", ".rows"))
        assert head["y"] + head["height"] <= rect["y"] + 1 <= rect["y"] + rect["height"] <= box["y"] + box["height"] + 1


def test_the_header_is_above_its_columns_where_scroll_bars_take_room(driver: Any, page: Path) -> None:
    for width in (1380, 900):
        size(driver, width, 700)
        show(driver, page, "#/features")
        scroller = driver.find_element("css selector", ".rows")
        assert scroller.size["width"] - driver.execute_script("return arguments[0].clientWidth", scroller) > 8
        driver.execute_script("arguments[0].scrollLeft = 200", scroller)
        offsets = driver.execute_script(
            """const cells = document.querySelector(".row").children;
            return [...document.querySelectorAll(".head button")].map((button, i) => {
              const one = button.getBoundingClientRect(), two = cells[i].getBoundingClientRect();
              return Math.max(Math.abs(one.left - two.left), Math.abs(one.right - two.right)); });"""
        )
        assert max(offsets) < 1


@pytest.mark.parametrize("width", [1000, 900, 420])
def test_narrow_windows_scroll_inside_only(driver: Any, page: Path, width: int) -> None:
    size(driver, width, 800)
    for route in ("#/", "#/features", "#/feature/8"):
        show(driver, page, route)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width, route
        box = driver.find_element("id", "search").rect
        assert box["width"] >= 180
        assert box["x"] + box["width"] <= width


def test_links_that_lead_nowhere_say_why(driver: Any, page: Path) -> None:
    for route, said in (
        ("#/feature/99999", "No feature 99999\nFeatures go from 0 to 199."),
        ("#/feature/%E0%A4", "No feature %E0%A4\nFeatures go from 0 to 199."),
        ("#/other", "There is no page \u201cother\u201d here"),
    ):
        show(driver, page, route)
        assert said in text(driver, "#view")
