"""The first page of a sweep's dashboard: what it says, and in headless Chromium where its links lead, in light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dashboard.folder import write_dashboard
from pipeline.dashboard.members import UP, members_page
from pipeline.params.loader import params_from_dict
from pipeline.params.reading import read_mapping
from pipeline.params.schema import Params
from tests.dashboard import synthetic
from tests.dashboard.browser import NEEDS_CHROMIUM, chromium, color_scheme, size, wait_for
from tests.project import REPOSITORY

SWEEP = {"k16": {"dictionary.top_k": 16}, "k64": {"dictionary": {"top_k": 64}, "trainer.lr": 0.0002}, "best.1": {}}
SHOWN = {"k16": "SAE of 16 <b>", "k64": "SAE of 64", "best.1": "SAE of 24"}


def figures(l0: float, fvu: float, delta_ce: float) -> dict[str, float]:
    own = {"l0_mean": l0, "fvu": fvu, "delta_ce": delta_ce, "dead_fraction": 0.25, "evaluated_tokens": 1000.0}
    return {**own, "fvu_low": fvu - 0.01, "fvu_high": fvu + 0.01, "pca_fvu": 0.5, "pca_delta_ce": 0.75, "pca_rank": l0}


METRICS = {"k16": figures(16, 0.2, 0.3), "k64": figures(64, 0.125, 0.4), "best.1": figures(24, 0.15, 0.25)}


@pytest.fixture(scope="module")
def params() -> Params:
    return params_from_dict(read_mapping(REPOSITORY / "params.yaml") | {"sweep": SWEEP})


def test_a_row_of_each_member_and_what_is_on_the_front(params: Params) -> None:
    page = members_page(params, METRICS, SHOWN, single=False)
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page, re.DOTALL)
    cells = [[re.sub(r"<[^>]*>", " ", cell).split() for cell in re.findall(r"<td.*?</td>", row)] for row in rows]
    assert [row[0][0] for row in cells] == list(SWEEP)
    assert [" ".join(row[1]) for row in cells] == ["top_k 16", "top_k 64, trainer.lr 0.0002", "as the run"]
    assert [row[2] for row in cells] == [["16"], ["64"], ["24"]]
    assert cells[0][3] == ["0.2", "95", "%:", "0.19", "\u2013", "0.21"]
    assert [row[-1] for row in cells] == [["25.00%"]] * 3
    own = [[' own"' in cell for cell in re.findall(r"<td.*?</td>", row)] for row in rows]
    assert [(row[3], row[5]) for row in own] == [(True, True), (True, False), (True, True)]  # FVU, delta cross entropy
    assert "SAE of 16 &lt;b&gt;" in page
    assert "single.html" not in page
    assert "k16/single.html" in members_page(params, METRICS, SHOWN, single=True)


@NEEDS_CHROMIUM
def test_links_lead_to_a_member_and_back(params: Params, tmp_path: Path) -> None:
    store = FeatureStore(synthetic.make_store(tmp_path / "store", 20, contexts=2))
    for name in SWEEP:
        write_dashboard(tmp_path / name, store, {**synthetic.overview([20]), "about": f"SAE {name}"}, single=5, up=UP)
    (tmp_path / "index.html").write_text(members_page(params, METRICS, SHOWN, single=True))
    with chromium() as driver:
        size(driver, 1280, 960)
        driver.get((tmp_path / "index.html").as_uri())
        assert driver.title == "main: 3 members"
        backgrounds = []
        for scheme in ("light", "dark"):
            color_scheme(driver, scheme)
            backgrounds.append(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert len(set(backgrounds)) == 2
        widths = (
            "return [document.body, ...document.querySelectorAll('.wide, .card')].map((e) => e.scrollWidth - e.clientWidth)"
        )
        assert set(driver.execute_script(widths)) == {0}  # nothing is cut or scrolls
        driver.find_element("link text", "k64").click()
        wait_for(driver, "")
        assert driver.find_element("css selector", "h1").text == "SAE k64"
        driver.find_element("link text", "Members").click()
        assert driver.find_element("css selector", "h1").text == "main: 3 members"
        driver.find_elements("link text", "features")[2].click()
        wait_for(driver, "#/features")
        assert "/best.1/index.html" in driver.current_url
        assert [entry["message"] for entry in driver.get_log("browser")] == []
