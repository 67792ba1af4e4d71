"""Files and directories that are whole or absent, locks, free space."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pipeline import files
from pipeline.errors import DataError
from pipeline.files import atomic_directory, atomic_file, ensure_free_space, locked, read_json, root, write_bytes, write_json
from tests.messages import saying, says

ROOT = Path(__file__).parents[1]


def _start(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_root_is_dvcs_or_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert root() == tmp_path
    monkeypatch.setenv("DVC_ROOT", "")
    assert root() == tmp_path
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert root() == Path("/elsewhere")


def test_json_is_sorted_and_the_same_bytes(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": 1, "a": [1.5, None, "x"]})
    assert path.read_text() == '{\n  "a": [\n    1.5,\n    null,\n    "x"\n  ],\n  "b": 1\n}\n'
    first = path.read_bytes()
    write_json(path, {"a": [1.5, None, "x"], "b": 1})
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_the_users(tmp_path, umask):
    """Also of what a library writes with permissions of its own."""
    place = tmp_path / "new"
    before = os.umask(umask)
    try:
        write_bytes(place / "a", b"")
        for _ in range(2):
            with atomic_directory(place / "b") as made:
                (made / "inside").mkdir()
                save_file({"x": torch.ones(2)}, made / "inside" / "weights")
        with atomic_file(place / "c") as made:
            save_file({"x": torch.ones(2)}, made)
    finally:
        os.umask(before)
    found = {str(path.relative_to(place)): path.stat().st_mode & 0o777 for path in place.rglob("*")}
    files, folders = dict.fromkeys(("a", "b/inside/weights", "c"), 0o666), dict.fromkeys(("b", "b/inside"), 0o777)
    assert found == {name: mode & ~umask for name, mode in {**files, **folders}.items()}


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": float("inf")}, {"a": {1, 2}}])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, value):
    write_json(tmp_path / "a.json", {"old": True})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "x") == {"old": True}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_readers_never_see_a_part(tmp_path):
    path = tmp_path / "a"
    contents = {bytes([i]) * 300_000 for i in range(2)}
    write_bytes(path, bytes(300_000))
    writer = _start(
        """
        import sys
        from pipeline.files import write_bytes
        print("ready", flush=True)
        for i in range(100_000):
            write_bytes(sys.argv[1], bytes([i % 2]) * 300_000)
        """,
        path,
    )
    writer.stdout.readline()
    start, seen = time.monotonic(), set()
    while (passed := time.monotonic() - start) < 0.5 or (seen < contents and passed < 100):  # however slow the writer is
        seen.add(path.read_bytes())
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert seen == contents
    assert path.read_bytes() in contents


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "missing"), (b"", "damaged"), (b'{"a": 1', "damaged"), (b"\xff\xfe\x00", "damaged"), (b"[" * 200_000, "damaged")],
)
def test_unreadable_json_is_named(tmp_path, content, part):
    path = tmp_path / "m.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path, "the manifest", "run `dvc repro`")
    assert str(caught.value).startswith(f"{path}: ")
    says(caught.value, "the manifest", part)
    assert str(caught.value).endswith("; run `dvc repro`")


def test_a_directory_or_a_file_in_the_way_is_named(tmp_path):
    with pytest.raises(DataError, match=saying(f"{tmp_path}:", "manifest", "directory")):
        read_json(tmp_path, "the manifest")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=saying("m.json:", "manifest", "Not a directory")):
        read_json(tmp_path / "file" / "m.json", "the manifest")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("before", ["nothing", "directory", "file", "link to a directory", "broken link"])
def test_a_directory_takes_the_place_of_what_was_there(tmp_path, before):
    path, other = tmp_path / "place" / "out", tmp_path / "other"
    path.parent.mkdir()
    other.mkdir()
    (other / "kept").write_text("kept")
    if before == "directory":
        path.mkdir()
        (path / "old").write_text("old")
    elif before == "file":
        path.write_text("old")
    elif before != "nothing":
        path.symlink_to(other if before == "link to a directory" else tmp_path / "nowhere")
    with atomic_directory(path) as temporary:
        (temporary / "new").write_text("new")
        assert temporary.parent == path.parent
    assert _names(path) == ["new"]
    assert not path.is_symlink()
    assert _names(path.parent) == ["out"]
    assert _names(other) == ["kept"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_directory(tmp_path, error):
    with atomic_directory(tmp_path / "out") as temporary:
        (temporary / "old").write_text("old")

    def fail() -> None:
        with atomic_directory(tmp_path / "out") as temporary:
            (temporary / "new").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["old"]


def test_names_that_look_like_patterns(tmp_path):
    bystander = tmp_path / ".a.partial-x"
    bystander.mkdir()
    for name in ("[a]", "*", "b?"):
        (tmp_path / f".{name}.partial-old").mkdir()
        with atomic_directory(tmp_path / name):
            pass
        assert not (tmp_path / f".{name}.partial-old").exists()
    assert bystander.exists()


def test_killed_while_writing_leaves_old_or_new_whole(tmp_path):
    """Killed at many moments; what stands at `path` is always whole, and the next call clears up."""
    path = tmp_path / "out"
    code = """
    import sys
    from pipeline.files import atomic_directory
    print("ready", flush=True)
    for i in range(1_000_000):
        with atomic_directory(sys.argv[1]) as place:
            for name in range(20):
                (place / str(name)).write_text(str(i))
    """
    for n in range(6):
        writer = _start(code, path)
        writer.stdout.readline()
        time.sleep(0.05 + 0.013 * n)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        if path.exists():
            contents = [(path / str(name)).read_text() for name in range(20)]
            assert len(set(contents)) == 1
    with atomic_directory(path) as place:
        (place / "a").write_text("a")
    assert _names(tmp_path) == ["out"]


def test_a_lock_names_its_holder_and_ends_with_the_process(tmp_path):
    path = tmp_path / "new" / "lock"
    holder = _start(
        """
        import sys, time
        from pipeline.files import locked
        with locked(sys.argv[1], "the store"):
            print("held", flush=True)
            time.sleep(600)
        """,
        path,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataError) as caught, locked(path, "the store"):
        pass
    says(caught.value, f"{path.parent}:", "the store", f"pid {holder.pid}")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    for _ in range(2):
        with locked(path, "the store"):
            pass


def test_a_lock_that_a_child_has_kept_names_the_child(tmp_path):
    """The process that took it is a zombie, its number that of nobody."""
    holder = _start(
        """
        import os, sys, time
        from pipeline.files import locked
        with locked(sys.argv[1], "the store"):
            if child := os.fork():
                print(child, flush=True)
                os._exit(0)
            time.sleep(600)
        """,
        tmp_path / "lock",
    )
    child = int(holder.stdout.readline())
    try:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(DataError) as caught, locked(tmp_path / "lock", "the store"):
            pass
        assert re.findall(r"pid (\d+)", str(caught.value)) == [str(child)]
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "lock", "x"):
        raise RuntimeError
    with locked(tmp_path / "lock", "x"):
        pass


def test_a_file_system_without_locks_is_not_said_to_be_in_use(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files, "fcntl", SimpleNamespace(flock=refuse, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB))
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path / "lock", "x"):
        pass


def test_free_space(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    ensure_free_space(tmp_path / "not" / "there" / "yet", 1, "a checkpoint")
    with pytest.raises(DataError) as caught:
        ensure_free_space(tmp_path / "not" / "there", free * 4, "a checkpoint")
    says(caught.value, f"{tmp_path / 'not' / 'there'}:", "no space", "a checkpoint", f"{free * 4 / 2**20:,.1f} MiB")
    monkeypatch.chdir(tmp_path)
    ensure_free_space("relative/path", 1, "a checkpoint")


def test_written_json_is_what_was_given(tmp_path):
    value = {"text": "\u00e9\u4e2d\n", "numbers": [0, -1, 1e-300, 2**63], "nested": {"a": [{}]}, "flag": False}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "x") == value == json.loads((tmp_path / "a.json").read_bytes())
    assert (tmp_path / "a.json").read_bytes().isascii()


def test_what_a_killed_write_has_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "norms.json"
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead = tmp_path / f".norms.json.{ended.pid}-0123abcd.partial"
    alive = tmp_path / f".norms.json.{os.getpid()}-0123abcd.partial"
    other = tmp_path / f".norms.json.bak.{ended.pid}-0123abcd.partial"
    for path in (dead, alive, other):
        path.write_text("half")
    write_json(target, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, other.name, target.name])


def test_what_is_near_a_path_that_is_not_there(tmp_path, monkeypatch):
    here, checkout = tmp_path / "here", tmp_path / "checkout"
    for place in (here / "data" / "demo" / "model", here / "data" / "demo" / "other", checkout / "texts" / "stories"):
        place.mkdir(parents=True)
    for file in ("smollm2-135m-instruct.gguf", "notes.txt", ".hidden.gguf"):
        (here / "data" / file).write_text("")
    monkeypatch.chdir(here)
    monkeypatch.setenv("DVC_ROOT", str(checkout))

    def a_model(path):
        return path.suffix == ".gguf" or path.name == "model"

    assert files.near_paths("data/dmeo/model", a_model) == ["data/demo/model"]
    assert files.near_paths("dta/dmeo/modle", a_model) == ["data/demo/model"]
    assert files.near_paths(here / "data" / "demo" / "mdel", a_model) == [str(here / "data" / "demo" / "model")]
    assert files.near_paths("data/smollm2-135m-instuct.gguf", a_model) == ["data/smollm2-135m-instruct.gguf"]
    assert files.near_paths("data/x.gguf", a_model) == ["data/smollm2-135m-instruct.gguf"]  # beside it, the one of its kind
    assert files.near_paths("gpt2", a_model) == files.near_paths("EleutherAI/pythia", a_model) == []  # a hub id
    assert files.near_paths("text/storys", Path.is_dir) == ["texts/stories"]  # in the checkout
    assert files.near("data/dmeo/model", a_model) == "; near it is data/demo/model"
    assert files.near("a\0b/" * 3 + "x" * 5000, a_model) == ""
