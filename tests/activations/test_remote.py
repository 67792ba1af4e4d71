"""Activation stores on a real S3 server: the bytes of a store on a disk, through faults, a bounded cache, and what goes wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.activations import plan, remote, schema, writer
from pipeline.activations.for_params import generate_for
from pipeline.activations.reader import open_store
from pipeline.errors import DataError
from pipeline.lm.loading import load_stated, stated_widths
from pipeline.opening import open_activations
from pipeline.params.choices import COMPRESSORS
from pipeline.params.loader import load_params
from tests.activations.object_store import failing, request, s3_server
from tests.project import D_MODEL, Project
from tests.threads import in_threads

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def away(server: str, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Project:
    """A project whose stores are on the server, each test's under a prefix of its own."""
    credentials = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-to-be-shown", "AWS_REGION": "us-east-1"}
    for name, value in {**credentials, "AWS_ENDPOINT_URL": server, "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SCOPELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_ROOTS", {})
    monkeypatch.setattr(schema, "CHUNK_BYTES", 512 * D_MODEL * 2)  # several chunks
    return project


def use(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOPELINE_STORE", f"s3://activations/{prefix}")
    remote._ROOTS.clear()


def forget(project: Project, tmp_path: Path) -> None:
    """As on another machine: nothing is here."""
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    remote._ROOTS.clear()


def manifest(project: Project) -> bytes:
    return (project.path / "data" / "activations.json").read_bytes()


@pytest.fixture
def wanted(away: Project, tmp_path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The manifest of a store on a disk, and its files."""
    own = away.copy(tmp_path / "on-a-disk")
    assert own.run("generate_activations").exit_code == 0
    files = {str(file.relative_to(own.store)): file.read_bytes() for file in own.store.rglob("*") if file.is_file()}
    return manifest(own), files


def objects(server: str, prefix: str) -> dict[str, bytes]:
    """{name below the store: content} of all objects under a prefix."""
    place = server.removeprefix("http://")
    names = re.findall(r"<Key>([^<]+)</Key>", request(place, "GET", f"/activations?prefix={prefix}&max-keys=1000").decode())
    return {name.split("/", 2)[2]: request(place, "GET", f"/activations/{name}") for name in names}


def test_the_objects_are_the_files_of_a_store_on_a_disk(
    away: Project, wanted: tuple[bytes, dict[str, bytes]], server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use("same", monkeypatch)
    assert away.run("generate_activations").exit_code == 0
    assert manifest(away) == wanted[0]
    assert objects(server, "same") == wanted[1]
    forget(away, tmp_path)
    store = open_activations(away.path / "data" / "activations.json")
    first = next(store.batches(128, seed=0)).activations[HOOK]
    monkeypatch.delenv("SCOPELINE_STORE")
    there = next(iter((tmp_path / "on-a-disk" / "data" / "store").glob("*/zarr.json"))).parent
    assert torch.equal(first, next(open_store(there).batches(128, seed=0)).activations[HOOK])


def test_several_processes_put_the_objects_of_one(
    away: Project, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each with a connection of its own; one stopped in between."""
    for module in (schema, plan):
        monkeypatch.setattr(module, "BLOCK_ROWS", 1024)
    shutil.rmtree(away.path / "data" / "store")
    assert away.run("generate_activations").exit_code == 0
    wanted = {str(file.relative_to(away.store)): file.read_bytes() for file in away.store.rglob("*") if file.is_file()}
    before = manifest(away)
    use("several", monkeypatch)
    url, cache = "s3://activations/several", tmp_path / "cache"
    roots: Any = remote.RemoteRoot
    monkeypatch.setattr(writer, "remote_of", lambda path: roots(url, remote.Cache(cache, 1e9)).store(path))
    params = load_params(away.path / "params.yaml")

    def generated(processes: Any, stopped: int | None = None) -> None:
        def load(*named: Any) -> Any:
            if processes.rank == stopped:
                raise KeyboardInterrupt
            return load_stated(*named)

        places = (away.path / "data" / "tokens.zarr", away.path / "data" / "activations.json")
        generate_for(params, stated_widths, load, *places, None, processes)

    with chdir(away.path):
        with pytest.raises(KeyboardInterrupt):
            in_threads(2, lambda processes: generated(processes, stopped=1))
        in_threads(3, generated)
    assert objects(server, "several") == wanted
    assert manifest(away) == before


def test_faults_of_the_server_change_nothing(
    away: Project, wanted: tuple[bytes, dict[str, bytes]], server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every third request fails: refused, reset or cut off in the middle."""
    with failing(server, 3) as (url, met):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        use("faults", monkeypatch)
        outcome = away.run("generate_activations")
        assert outcome.exit_code == 0, outcome.stderr
        assert manifest(away) == wanted[0]
        forget(away, tmp_path)
        assert away.run("compute_norm").exit_code == 0
    assert {"500", "reset", "503", "cut"} <= set(met)
    assert objects(server, "faults") == wanted[1]


def test_generation_goes_on_with_what_is_there(
    away: Project, wanted: tuple[bytes, dict[str, bytes]], server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A killed run on another machine has left chunks and their digests; one of them was not put."""
    use("resume", monkeypatch)
    assert away.run("generate_activations").exit_code == 0
    place, name = server.removeprefix("http://"), next(iter(objects(server, "resume")))
    fingerprint = next(iter((tmp_path / "cache").glob("*/zarr.json"))).parent.name
    chunk = next(name for name in wanted[1] if name.startswith(f"{HOOK}/c"))
    for gone in (chunk, f"{HOOK}/zarr.json"):
        request(place, "DELETE", f"/activations/resume/{fingerprint}/{gone}")
    forget(away, tmp_path)
    assert name
    assert away.run("generate_activations").exit_code == 0
    assert objects(server, "resume") == wanted[1]


def held_in(cache: Path) -> int:
    """Bytes of the files; one that a reader's thread removes meanwhile takes none."""
    held = 0
    for file in cache.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            held += file.stat().st_size if file.is_file() else 0
    return held


def test_the_cache_stays_within_its_bounds(away: Project, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use("bounded", monkeypatch)
    assert away.run("generate_activations").exit_code == 0
    forget(away, tmp_path)
    monkeypatch.setattr(remote, "FRESH", 0.0)
    whole = sum(len(content) for content in objects(server, "bounded").values())
    monkeypatch.setenv("SCOPELINE_CACHE_GIB", str(whole / 2 / 2**30))
    store = open_activations(away.path / "data" / "activations.json")
    for _ in zip(range(40), store.batches(128, seed=0), strict=False):
        assert held_in(tmp_path / "cache") <= whole / 2 + 2**12  # the small files stay, whatever the bound
    store.verify()


def test_an_altered_copy_is_got_again_and_an_altered_object_named(
    away: Project, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use("altered", monkeypatch)
    assert away.run("generate_activations").exit_code == 0
    copy = next((tmp_path / "cache").glob(f"*/{HOOK}/c*"))
    content = copy.read_bytes()
    other = bytes([content[0] ^ 1]) + content[1:]
    copy.write_bytes(other)
    open_activations(away.path / "data" / "activations.json").verify()
    assert copy.read_bytes() == content
    name = f"/activations/altered/{copy.relative_to(tmp_path / 'cache')}"
    request(server.removeprefix("http://"), "PUT", name, other)
    forget(away, tmp_path)
    with pytest.raises(DataError, match=r"chunk 0 is altered.*remove the object s3://activations/altered/"):
        open_activations(away.path / "data" / "activations.json").verify()


def test_what_is_wrong_is_told_in_one_line(away: Project, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "RETRIES", 1)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # where a machine in the cloud would find credentials
    cases: list[tuple[dict[str, str | None], str]] = [
        ({"SCOPELINE_STORE": "s3://activations/x", "AWS_ACCESS_KEY_ID": None}, "give credentials whole"),
        (
            {"SCOPELINE_STORE": "s3://activations/x", "AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            "AWS_SECRET_ACCESS_KEY, or a profile",
        ),
        ({"SCOPELINE_STORE": "s3://no-such-bucket/x"}, "no such bucket"),
        ({"SCOPELINE_STORE": "ftp://host/x"}, "SCOPELINE_STORE=ftp://host/x"),
        ({"SCOPELINE_STORE": "s3://activations/x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "after 1 tries"),
        ({"SCOPELINE_STORE": "s3://activations/x", "SCOPELINE_CACHE_GIB": "none"}, "SCOPELINE_CACHE_GIB=none"),
    ]
    for environment, words in cases:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.delenv(name) if value is None else patch.setenv(name, value)
            remote._ROOTS.clear()
            outcome = away.run("generate_activations")
            errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
            assert outcome.exit_code == 2, outcome.stderr
            assert len(errors) == 1
            assert words in errors[0]
            assert "not-to-be-shown" not in outcome.stderr


def refused(away: Project, stage: str = "generate_activations") -> str:
    """The one line with which a stage ends; no secret is in what it says."""
    outcome = away.run(stage)
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert outcome.exit_code == 2, (outcome.stderr, outcome.exception)
    assert len(errors) == 1, outcome.stderr
    assert "not-to-be-shown" not in outcome.stderr
    return errors[0]


def test_digits_of_an_address_or_a_duration_are_no_status() -> None:
    """What an object store says has its port, the object's name and the time that it took."""
    said = (
        "Generic S3 error: Error performing GET http://127.0.0.1:{port}/credentials/{name} in {time}ms, after 2 retries - "
        "Server returned non-2xx status code: {status}: "
    )
    for port, name, time in (("40349", "401f/c.0.0", "12.9"), ("44855", "x/NotFound", "2.404401"), ("40444", "403", "403.1")):
        for status in ("500 Internal Server Error", "503 Service Unavailable"):
            assert remote.lasting_fault(OSError(said.format(port=port, name=name, time=time, status=status))) is None
        for status, words in (
            ("403 Forbidden", "not allowed"),
            ("401 Unauthorized", "not allowed"),
            ("404 Not Found", "no such"),
        ):
            fault = remote.lasting_fault(OSError(said.format(port=port, name=name, time=time, status=status)))
            assert fault is not None
            assert fault.startswith(words)
    reset = "Generic S3 error: Error performing GET http://127.0.0.1:40301/a/404 in 1.403ms - HTTP error: connection reset"
    assert remote.lasting_fault(OSError(reset)) is None


@pytest.mark.parametrize("fault", ["500", "503", "reset"])
def test_a_server_that_always_fails_is_given_up(
    away: Project, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    """After a bounded number of requests, also where only the chunks cannot be had."""
    monkeypatch.setattr(remote, "RETRIES", 2)
    monkeypatch.setattr(remote, "FIRST_WAIT", remote.FIRST_WAIT / 10)
    with failing(server, 1, (fault,)) as (url, met):
        use("always", monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        said = refused(away)
        assert "s3://activations/always" in said
        assert "after 2 tries; run the same command again to go on" in said
        assert len(met) == 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    remote._ROOTS.clear()
    assert away.run("generate_activations").exit_code == 0
    forget(away, tmp_path)
    store = open_activations(away.path / "data" / "activations.json")
    with failing(server, 1, (fault,)) as (url, met):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        remote._ROOTS.clear()
        failing_store = remote.remote_of(store.path)
        assert failing_store is not None
        failing_store.sizes = {f"{HOOK}/c.0.0": 1}
        with pytest.raises(DataError, match=r"cannot give blocks\.0\.hook_resid_post/c\.0\.0 .*after 2 tries"):
            failing_store.fetch(f"{HOOK}/c.0.0")
        assert len(met) == 3


@pytest.mark.parametrize("status", ["401", "403"])
def test_credentials_that_may_not_are_named_and_not_tried_again(
    away: Project, server: str, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    with failing(server, 1, (status,)) as (url, met):
        use("denied", monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        said = refused(away)
    assert "not allowed" in said
    assert "AWS_ACCESS_KEY_ID" in said
    assert len(met) == 1


def full(path: Path, content: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_of_the_cache(away: Project, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reading names the cache, nothing half-written stays, and with room it goes on; so does writing."""
    use("full", monkeypatch)
    assert away.run("generate_activations").exit_code == 0
    forget(away, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        said = refused(away, "compute_norm")
    assert "cannot be kept here (No space left on device)" in said
    assert "SCOPELINE_CACHE_GIB" in said
    assert str(tmp_path / "cache") in said
    assert not list((tmp_path / "cache").rglob("*.partial"))
    remote._ROOTS.clear()
    assert away.run("compute_norm").exit_code == 0

    use("full-while-writing", monkeypatch)
    with monkeypatch.context() as patch:
        replace = os.replace

        def no_room(source: Path, target: Path) -> None:
            if HOOK in str(target) and Path(target).name.startswith("c."):
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        patch.setattr(writer.os, "replace", no_room)
        said = refused(away)
    assert "no space left" in said
    assert "SCOPELINE_CACHE" in said
    assert "SCOPELINE_STORE" not in said
    remote._ROOTS.clear()
    assert away.run("generate_activations").exit_code == 0


def test_the_cache_stays_within_its_bounds_while_a_store_is_written(
    away: Project, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use("bounded-writing", monkeypatch)
    monkeypatch.setattr(remote, "FRESH", 0.0)
    bound = 8 * 512 * D_MODEL
    monkeypatch.setenv("SCOPELINE_CACHE_GIB", str(bound / 2**30))
    most: list[int] = []
    push = remote.RemoteStore.push

    def pushed(self: remote.RemoteStore, name: str) -> None:
        push(self, name)
        most.append(held_in(tmp_path / "cache"))

    monkeypatch.setattr(remote.RemoteStore, "push", pushed)
    assert away.run("generate_activations").exit_code == 0
    small = sum(len(content) for name, content in objects(server, "bounded-writing").items() if name.endswith(remote.SMALL))
    whole = sum(len(content) for content in objects(server, "bounded-writing").values())
    assert max(most) <= bound + small + 2**12 < whole


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_objects(
    away: Project,
    wanted: tuple[bytes, dict[str, bytes]],
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    """What is read is what a store on a disk holds that is not compressed."""
    there = next(iter((tmp_path / "on-a-disk" / "data" / "store").glob("*/zarr.json"))).parent
    rows = open_store(there).read(HOOK, 0, 4096)
    use(name, monkeypatch)
    away.set(activations__compressor=name)
    assert away.run("generate_activations").exit_code == 0
    forget(away, tmp_path)
    store = open_activations(away.path / "data" / "activations.json")
    assert torch.equal(store.read(HOOK, 0, 4096), rows)
    assert json.loads(manifest(away))["config"]["compressor"] == name
