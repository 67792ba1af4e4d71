"""An upload to a site that fails now and then: every feature arrives once, within the limits, and the key is shown nowhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.interop.neuronpedia.site import KEY_VARIABLE, Site, SiteError
from tests.interop.neuronpedia_site import KEY, LOST, RESET, FakeSite, objection, running
from tests.interop.neuronpedia_store import DEAD, PER_LAYER, planted_store
from tests.interop.test_neuronpedia_files import SOURCE, exported, refused, run
from tests.messages import says

SET = "scopeline-main"
ALIVE = [i for i in range(PER_LAYER) if i != DEAD]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    for variable in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with running() as found:
        yield found


def upload(site: FakeSite, *arguments: str) -> tuple[int, str, str]:
    """Batches of two features, without waits."""
    return run("--to", site.url, "--set", "batch_features=2", "--set", "backoff_s=0", *arguments)


def written(here: Path) -> dict[int, dict[str, Any]]:
    """The features as the files have them."""
    exported("--to", "files", "--set", "forms=upload")
    batch = json.loads((here / "files/upload" / SOURCE / "batch-0.json").read_bytes())
    assert objection(batch) is None
    return {each["index"]: each for each in batch["features"]}


def test_every_feature_arrives_once_though_the_site_fails(here: Path, site: FakeSite, caplog: pytest.LogCaptureFixture) -> None:
    planted_store(here / "data/features")
    site.with_set("demo", SET)
    site.failures = [429, (429, {"Retry-After": "0"}), 500, None, RESET, LOST, None, (503, {"Retry-After": "0"}), RESET, 502]
    with caplog.at_level(logging.DEBUG):
        code, out, err = upload(site)
    assert code == 0, err
    assert site.failures == []
    assert site.refused == []
    assert site.of("demo", SOURCE) == written(here)
    assert [len(batch["features"]) for batch in site.taken] == [2, 2, 2, 2, 1]
    says(out, "9 features sent in 5 batches", "1 batches whose reply was lost")
    assert set(site.keys) == {KEY}
    assert KEY not in out + err + caplog.text
    assert not any(KEY.encode() in path.read_bytes() for path in here.glob("data/export/**/*") if path.is_file())
    posts = site.posts
    says(upload(site)[1], "0 features sent", "9 features were accepted before")
    assert site.posts == posts


def test_an_upload_goes_on_where_it_stopped(here: Path, site: FakeSite) -> None:
    planted_store(here / "data/features")
    site.with_set("demo", SET)
    site.failures = [None, None, *[500] * 8]
    code, _, err = upload(site)
    assert code == 2
    says(err, "status 500", "8 attempts", "run the same command again")
    assert sorted(site.of("demo", SOURCE)) == ALIVE[:4]
    posts = site.posts
    code, out, err = run("--to", site.url, "--set", "backoff_s=0")
    assert code == 0, err
    assert site.posts == posts + 1  # the rest is one batch of the usual size
    says(out, "5 features sent in 1 batches", "4 features were accepted before")
    assert site.of("demo", SOURCE) == written(here)


@pytest.mark.parametrize("there", [True, False])
def test_killed_between_a_batch_and_its_line(here: Path, site: FakeSite, there: bool) -> None:
    """The journal ends with a batch that was sent and no word of what became of it, and with half a line."""
    planted_store(here / "data/features")
    site.with_set("demo", SET)
    site.failures = [None, None, *[401]]
    assert upload(site)[0] == 2
    (journal,) = here.glob("data/export/neuronpedia/uploads/*/demo/*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"state": "sent", "source": SOURCE, "indexes": ALIVE[4:6]}
    journal.write_bytes(b"".join(lines) + b'{"state": "acc')
    if there:
        files = written(here)
        site.features["demo", SOURCE] |= {index: [files[index]] for index in ALIVE[4:6]}
    code, out, err = upload(site)
    assert code == 0, err
    says(out, f"{3 if there else 5} features sent in {2 if there else 3} batches")
    assert site.of("demo", SOURCE) == written(here)


def test_nothing_is_sent_where_a_batch_is_wrong_or_it_is_a_dry_run(here: Path, site: FakeSite) -> None:
    planted_store(
        here / "data/features", counts=dict.fromkeys(("top", "75-100 %", "50-75 %", "25-50 %", "0-25 %", "inactive"), 0)
    )
    site.with_set("demo", SET)
    says(upload(site)[2], "feature 0", "no context")
    planted_store(here / "data/features")
    says(upload(site, "--dry-run")[1], "5 upload batches", "nothing was sent")
    assert (site.posts, site.keys) == (0, [])


def test_what_is_on_the_site_is_not_added_to(here: Path, site: FakeSite) -> None:
    planted_store(here / "data/features")
    says(upload(site)[2], "model 'demo'", f"'{SET}'", "--set create=true")
    site.with_set("demo", SET)
    site.features["demo", SOURCE] = {0: [{"index": 0}]}
    says(upload(site)[2], f"'{SOURCE}'", "feature 0", "--set source_set")
    site.features.clear()
    assert upload(site)[0] == 0
    features, contexts = planted_store(here / "data/features", name="main", tokens=20_000)
    assert len(features) == PER_LAYER
    assert contexts
    says(upload(site)[2], "another feature store", "--set source_set")
    assert len(site.of("demo", SOURCE)) == len(ALIVE)


def test_a_model_and_a_source_set_are_made(here: Path, site: FakeSite) -> None:
    planted_store(here / "data/features")
    code, _, err = upload(site, "--set", "create=true", "--set", "model_id=mine-1", "--set", "source_set=res-2k")
    assert code == 0, err
    (model, made), (group, of) = site.made
    assert (model, made) == ("/api/model/new", {"id": "mine-1", "layers": 4})
    assert (group, of["name"], of["modelId"]) == ("/api/source-set/new", "res-2k", "mine-1")
    assert sorted(site.of("mine-1", "2-res-2k")) == ALIVE
    assert upload(site, "--set", "create=true", "--set", "model_id=public")[0] == 0  # a model that others have made
    says(upload(site, "--set", "create=true", "--set", "model_id=shallow")[2], "no source", f"'{SOURCE}'")
    says(upload(site, "--set", "create=true", "--set", "model_id=a_b")[2], "--set model_id=a_b")


def test_layers_go_to_sources_of_their_own(here: Path, site: FakeSite) -> None:
    planted_store(here / "data/features", layers=3)
    site.with_set("demo", SET)
    site.failures = [None, 500, LOST]
    code, _, err = upload(site)
    assert code == 0, err
    for layer in range(3):
        assert sorted(site.of("demo", f"{layer}-{SET}")) == ALIVE
    assert all(len({batch["source"]}) == 1 for batch in site.taken)


def test_refusals_are_said_once_without_the_key(here: Path, site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_store(here / "data/features")
    site.with_set("demo", SET)
    for status, part in ((413, "--set batch_bytes"), (302, "--to"), (400, "not now")):
        site.posts, site.always = 0, status
        code, out, err = upload(site)
        assert (code, out) == (2, "")
        says(err, status, part)
        assert len(err.splitlines()) == 1 or "upload" in err
        assert site.posts == 1
    site.always = None
    monkeypatch.setenv(KEY_VARIABLE, "another-key-9876543210")
    err = upload(site)[2]
    says(err, 401, KEY_VARIABLE, "***")
    assert "another-key" not in err
    monkeypatch.delenv(KEY_VARIABLE)
    says(upload(site)[2], KEY_VARIABLE, "not set")
    monkeypatch.setenv(KEY_VARIABLE, "caf\u00e9")
    says(upload(site)[2], KEY_VARIABLE, "no header")


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("http://example.org", "https"),
        ("ftp://localhost", "not an address"),
        ("https://user:secret@localhost", "not an address"),
        ("https://", "not an address"),
    ],
)
def test_addresses(here: Path, monkeypatch: pytest.MonkeyPatch, address: str, part: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    planted_store(here / "data/features")
    err = refused("--to", address)
    says(err, "--to", part)
    assert "secret" not in err


def test_a_wait_that_is_too_long_is_not_waited(site: FakeSite) -> None:
    waits: list[float] = []
    connection = Site(site.url, sleep=waits.append)
    site.failures = [429, 500, (429, {"Retry-After": "7"}), (429, {"Retry-After": "3600"})]
    with pytest.raises(SiteError) as error:
        connection.post("/api/feature/upload-batch", b"{}")
    connection.close()
    says(error.value, 429, "3,600 s", "120 s", "again later")
    assert waits == [1.0, 2.0, 7.0]


def test_the_site_itself_by_its_name(here: Path) -> None:
    planted_store(here / "data/features")
    out = exported("--to", "neuronpedia:mine", "--dry-run")
    says(out, "source 2-mine", "https://www.neuronpedia.org")
