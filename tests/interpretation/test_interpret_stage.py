"""The command, over HTTP and with a local model: what it prints and writes, and its errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.analysis.feature_tables import FeatureStore
from stages.interpret import main
from tests.interpretation.conftest import Stub, inverted
from tests.messages import says

KEY = "sk-planted-secret-0123456789"


def run(planted: Path, out: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["--features-dir", str(planted), "--out", str(out), *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def at(stub: Stub) -> tuple[str, ...]:
    return "--endpoint", stub.url, "--model", "planted-model"


def test_table_files_and_resume(planted: Path, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    code, out, err = run(planted, tmp_path / "out", *at(stub), "--n", "3", "--concurrency", "2")
    assert code == 0, err
    assert out.splitlines() == [
        "feature  detection  fuzzing  explanation",
        "7            1.000    1.000  the word cat",
        "6            1.000    1.000  the word cat",
        "8            1.000    1.000  the word cat",
        "median       1.000    1.000  over 3 features of planted-model",
    ]
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in stub.requests)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["6.json", "7.json", "8.json", "shown.html", "summary.json"]
    assert not any(KEY in path.read_text() for path in (tmp_path / "out").iterdir())
    assert KEY not in out + err
    asked = len(stub.requests)
    assert run(planted, tmp_path / "out", *at(stub), "--n", "3")[1] == out
    assert len(stub.requests) == asked
    stub.answer = inverted
    assert "0.000" in run(planted, tmp_path / "out", *at(stub), "--feature", "7", "--force")[1]
    assert len(stub.requests) == asked + asked // 3


def test_a_dashboard_with_the_explanations(planted: Path, tmp_path: Path, stub: Stub) -> None:
    from pipeline.dashboard.folder import write_dashboard
    from tests.dashboard.synthetic import overview
    from tests.dashboard.test_folder import read

    store, out = tmp_path / "features", tmp_path / "out"
    shutil.copytree(planted, store)
    write_dashboard(tmp_path / "dashboard", FeatureStore(store), overview(), single=0)
    code, _, err = run(store, out, *at(stub), "--feature", "7")
    assert code == 0, err
    table = read(out / "dashboard", "table")
    assert table["explanation"][table["feature"].index(7)] == ["the word cat", 1.0, 1.0]
    assert sum(entry is not None for entry in table["explanation"]) == 1


def test_a_member_of_a_sweep(planted: Path, tmp_path: Path, stub: Stub) -> None:
    from pipeline.dashboard.folder import write_dashboard
    from tests.dashboard.synthetic import overview
    from tests.dashboard.test_folder import read

    store, out = tmp_path / "features", tmp_path / "out"
    for name in ("k16", "k64"):
        shutil.copytree(planted, store / name)
    write_dashboard(tmp_path / "dashboard/k16", FeatureStore(store / "k16"), overview(), single=0, up="../index.html")
    code, _, err = run(store, out, *at(stub), "--feature", "7")
    assert code == 2
    says(err, "--member", "features", "k16, k64")
    assert stub.requests == []
    code, _, err = run(store, out, *at(stub), "--feature", "7", "--member", "k16")
    assert code == 0, err
    assert sorted(path.name for path in (out / "k16").iterdir()) == ["7.json", "dashboard", "shown.html", "summary.json"]
    table = read(out / "k16/dashboard", "table")
    assert table["explanation"][table["feature"].index(7)] == ["the word cat", 1.0, 1.0]
    assert "../index.html" not in (out / "k16/dashboard/index.html").read_text()  # there is no page of all members
    code, _, err = run(store / "k16", out, *at(stub), "--member", "k16")
    assert code == 2
    says(err, "--member k16", "without a sweep")


def test_a_local_model(planted: Path, tmp_path: Path, long_model: Path) -> None:
    arguments = ("--local", str(long_model), "--feature", "7", "--max-tokens", "8")
    code, out, err = run(planted, tmp_path, *arguments)
    assert code == 0, err
    record = json.loads((tmp_path / "7.json").read_text())
    assert record["model"] == str(long_model)
    assert record["explanation_parsed"] is False
    assert record["detection"]["unparsed"] == 32
    assert out.splitlines()[1].startswith("7                -        -  ")


def test_errors_of_the_endpoint(planted: Path, tmp_path: Path, stub: Stub) -> None:
    stub.always = (401, {}, "who are you")
    code, _, err = run(planted, tmp_path, *at(stub))
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    says(line, 401, "(who are you)", 200, "--api-key-variable")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ("got none", "--endpoint", "--local")),
        (["--model", "m"], ("got none", "--endpoint", "--local")),
        (["--endpoint", "http://localhost:1/v1", "--local", "m"], ("got both",)),
        (["--endpoint", "http://localhost:1/v1"], ("--endpoint", "--model", "together")),
        (["--endpoint", "localhost:8000", "--model", "m"], ("--endpoint", "localhost:8000", "http://localhost:8000/v1")),
        (["--endpoint", "http://localhost:1/v1", "--model", "m", "--api-key-variable", "NO_SUCH_KEY"], ("NO_SUCH_KEY",)),
        (["--endpoint", "http://localhost:1/v1", "--model", "m", "--feature", "99"], ("feature '99'", 10)),
        (["--local", "m", "--features-dir", "nowhere"], ("nowhere/features.parquet:", "missing")),
    ],
)
def test_errors(planted: Path, tmp_path: Path, arguments: list[str], parts: tuple[object, ...]) -> None:
    code, out, err = run(planted, tmp_path, *arguments)
    assert code == 2
    says(err, *parts)
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert out == ""


def test_without_a_model_both_forms_are_shown(planted: Path, tmp_path: Path) -> None:
    err = run(planted, tmp_path)[2]
    assert "--endpoint http://localhost:8000/v1 --model NAME" in err
    assert "--local PATH_OR_HUB_ID" in err
