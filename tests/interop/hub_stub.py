"""A small Hugging Face hub on this machine, for huggingface_hub's own client: what it calls to list, fetch and push.

Repositories lie in memory as commits, {file: content}. Files that end as large ones do are LFS objects; a commit that names one
that was not uploaded is refused, as is one whose parent is no longer the newest. Every request is noted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest

LARGE = (".safetensors", ".npz", ".pt")
TOKEN = "hf_secretSECRETsecret"


@dataclass
class Repository:
    """A repository: its commits, and what its branches and tags are."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """All files of a new commit of a branch; its name."""
        names = "".join(f"{name} {hashlib.sha1(content).hexdigest()}" for name, content in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)} {names}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def at(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """The hub: its repositories, and what was asked of it."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    broken: str = ""  # what every answer is, in place of one: an error's message
    spoil: bool = False  # a push is stored with other bytes
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], **about: Any) -> str:
        """A repository with one commit; its name."""
        self.repositories[name] = Repository(**about)
        return self.repositories[name].commit(files)

    def fetched(self) -> list[str]:
        """The files whose content was asked for."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1] for path in self.asked if path.startswith("GET") and "/resolve/" in path
        ]


def blob(content: bytes) -> str:
    """Its name in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"path": name, "rfilename": name, "type": "file", "size": len(content)}
    found["oid"] = found["blobId"] = blob(content)
    if name.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
        found["oid"] = found["blobId"] = blob(pointer)
        found["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": len(pointer)}
    return found


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def answer(self, status: int, value: Any = None, content: bytes | None = None, **headers: str) -> None:
        """Send an answer."""
        body = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "") -> None:
        """Send an error as the hub does."""
        self.answer(status, {"error": message or code}, X_Error_Code=code, X_Error_Message=message or code)

    def body(self) -> bytes:
        """Of the request, of known length or in chunks."""
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def handle_any(self) -> None:
        """Any request."""
        body = self.body()
        url = urlparse(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.hub.asked.append(f"{self.command} {'/'.join(parts)}")
        if self.hub.broken:
            given = self.headers.get("Authorization", "")
            return self.refuse(503, "Broken", f"{self.hub.broken} {given}")
        if parts[0] == "objects":
            content = body if not self.hub.spoil else body[:-1] + b"?"
            self.hub.objects[parts[1]] = content
            return self.answer(200, {})  # at an address of its own, without the token
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if parts[:3] == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[0] == "api":
            return self.api(parts, body, parse_qs(url.query))
        return self.file(parts, body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def repository(self, name: str, *, content: bool = False) -> Repository | None:
        """The repository, unless it is refused; of one with terms to accept the content of files is."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and TOKEN not in self.headers.get("Authorization", "")):
            self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        if found.gated and content:
            self.refuse(403, "GatedRepo", "Access to model is restricted")
            return None
        return found

    def create(self, asked: dict[str, Any]) -> None:
        """POST /api/repos/create."""
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self.refuse(409, "Conflict")
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=asked.get("visibility") == "private")
        return self.answer(200, {"url": f"{self.hub.url}/{name}", "id": name})

    def api(self, parts: list[str], body: bytes, query: dict[str, list[str]]) -> None:
        """/api/models/user/repository/..."""
        found = self.repository("/".join(parts[2:4]))
        if found is None:
            return None
        what, rest = (parts[4] if len(parts) > 4 else "revision"), parts[5:]
        if what == "branch":
            found.refs[rest[0]] = found.refs["main"]
            return self.answer(200, {})
        commit = found.at(rest[0] if rest else "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        files = found.commits[commit]
        if what == "revision":
            siblings = [_entry(name, content) if "blobs" in query else {"rfilename": name} for name, content in files.items()]
            about = {"id": "/".join(parts[2:4]), "sha": commit, "private": found.private, "siblings": siblings}
            return self.answer(200, about)
        if what == "tree":
            return self.answer(200, [_entry(name, content) for name, content in files.items()])
        if what == "preupload":
            return self.answer(200, {"files": [_mode(each["path"], files) for each in json.loads(body)["files"]]})
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            return self.push("/".join(parts[2:4]), rest[0], commit, lines)
        return self.refuse(404, "NotFound", what)

    def push(self, name: str, ref: str, commit: str, lines: list[dict[str, Any]]) -> None:
        """POST .../commit/<branch>, of lines."""
        found = self.hub.repositories[name]
        files = dict(found.commits[commit])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit") not in (None, commit):
                    return self.refuse(412, "PreconditionFailed", "the parent is not the newest commit")
                found.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.refuse(400, "BadRequest", "no such object")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = found.commit(files, ref)
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def file(self, parts: list[str], body: bytes) -> None:
        """/user/repository/resolve/<revision>/<file>, or the batch of LFS objects."""
        if parts[1].endswith(".git"):
            wanted = json.loads(body)["objects"]
            return self.answer(200, {"transfer": "basic", "objects": [self.upload(each) for each in wanted]})
        found = self.repository("/".join(parts[:2]), content=True)
        if found is None:
            return None
        commit, name = found.at(parts[3]), "/".join(parts[4:])
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        if name not in found.commits[commit]:
            return self.refuse(404, "EntryNotFound")
        content = found.commits[commit][name]
        etag = _entry(name, content).get("lfs", {}).get("oid") or blob(content)
        return self.answer(200, content=content, ETag=f'"{etag}"', X_Repo_Commit=commit)

    def upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What the batch says of an object."""
        href = {"href": f"{self.hub.url}/objects/{wanted['oid']}"}
        return {**wanted, **({} if wanted["oid"] in self.hub.objects else {"actions": {"upload": href}})}


def _mode(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    oid = blob(files[name]) if name in files else None
    return {"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular", "shouldIgnore": False, "oid": oid}


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Any) -> Iterator[Hub]:
    """A hub that answers, to which huggingface_hub turns, with an empty cache."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    turn_to(monkeypatch, hub.url, cache)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def turn_to(monkeypatch: pytest.MonkeyPatch, url: str, cache: Any) -> None:
    """Where huggingface_hub asks and keeps files."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", url)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
