"""The benchmark of a training step on a case of seconds."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from click.testing import CliRunner

from benchmarks import peers
from benchmarks.step import OURS, ROOT, SMALL, Timed, measure, table


def test_both_checkouts_train_alike_and_the_parts_are_timed() -> None:
    (case,) = SMALL
    found, beside = measure(case, ROOT, {}, rounds=1, threads=1)
    ours, before = (found[name][0] for name in (OURS, "before"))
    assert ours.fvu == before.fvu  # one and the same commit
    assert 0 < ours.fvu < 1
    assert min(ours.step, ours.cpu, *beside[0].values()) > 0


def test_the_table_has_ratios_to_this_commit() -> None:
    (case,) = SMALL
    found = {OURS: [Timed(1.0, 0.25, 2.0), Timed(2.0, 0.25, 2.0)], "before": [Timed(3.0, 0.5, 5.0), Timed(4.0, 0.5, 5.0)]}
    ours, before, parts = table(case, found, [{"selection": 300.0, "decoding": 450.0}])
    assert ours == f"| small, topk | {OURS} | 43 (32 to 64) | 1.00 | 1.00 | 0.2500 |"
    assert before == "| small, topk | before | 18 (16 to 21) | 2.50 | 2.50 | 0.5000 |"
    assert parts == "| small, topk | its parts alone | 85 | 0.50 of the step | | selection 300.0, decoding 450.0 ms |"


def test_peers_are_installed_once_and_their_pythons_are_named(tmp_path: Path) -> None:
    with (
        mock.patch("benchmarks.peers.venv.create", side_effect=lambda place, **_: place.mkdir(parents=True)) as made,
        mock.patch("benchmarks.peers.subprocess.run", return_value=mock.Mock(returncode=0)) as pip,
    ):
        for _ in range(2):
            found = CliRunner().invoke(peers.main, ["--environments", str(tmp_path), "--peer", "saelens", "--only-install"])
            assert found.stdout.strip().splitlines()[-1] == f"--peer saelens={tmp_path / 'saelens' / 'bin' / 'python'}"
    assert made.call_count == 1
    install, uninstall = (call.args[0] for call in pip.call_args_list)
    assert "install" in install
    assert peers.VERSIONS["saelens"] in install
    assert "uninstall" in uninstall
    assert set(peers.UNUSED) <= set(uninstall)


def test_a_peer_that_cannot_be_installed_is_said_and_tried_again(tmp_path: Path) -> None:
    with (
        mock.patch("benchmarks.peers.venv.create", side_effect=lambda place, **_: place.mkdir(parents=True, exist_ok=True)),
        mock.patch("benchmarks.peers.subprocess.run", return_value=mock.Mock(returncode=1, stderr="No matching distribution")),
    ):
        for _ in range(2):
            found = CliRunner().invoke(peers.main, ["--environments", str(tmp_path), "--peer", "sparsify"])
            assert found.exit_code == 1
            assert "No matching distribution" in found.stderr


def test_loaders_are_installed_in_stated_versions_and_their_sources_are_said(tmp_path: Path) -> None:
    arguments = ["--environments", str(tmp_path), "--peer", "circuit_tracer", "--only-install"]
    with (
        mock.patch(
            "benchmarks.peers.venv.create", side_effect=lambda place, **_: place.mkdir(parents=True, exist_ok=True)
        ) as made,
        mock.patch("benchmarks.peers.subprocess.run", return_value=mock.Mock(returncode=0)) as pip,
    ):
        found = CliRunner().invoke(peers.main, arguments)
        with mock.patch.dict(peers.LOADERS, {"circuit_tracer": ("huggingface-hub==0.36.1",)}):  # another pin: made anew
            CliRunner().invoke(peers.main, arguments)
    assert found.stdout == f"--peer circuit_tracer={tmp_path / 'circuit_tracer' / 'bin' / 'python'}\n"
    address, commit = peers.SOURCES["circuit_tracer"]
    assert f"git clone {address} circuit_tracer && git -C circuit_tracer checkout {commit}" in found.stderr
    assert set(peers.LOADERS["circuit_tracer"]) <= set(pip.call_args_list[0].args[0])
    assert made.call_count == 2
    assert "huggingface-hub==0.36.1" in pip.call_args_list[2].args[0]


def test_every_package_of_a_peer_has_its_version_stated() -> None:
    for wanted in (*peers.VERSIONS.values(), *(each for packages in peers.LOADERS.values() for each in packages)):
        assert wanted.count("==") == 1
    assert all(len(commit) == 40 for _, commit in peers.SOURCES.values())


def test_a_loader_is_not_timed(tmp_path: Path) -> None:
    found = CliRunner().invoke(peers.main, ["--environments", str(tmp_path), "--peer", "openmoss"])
    assert found.exit_code == 2
    assert "openmoss: has no trainer to time" in found.stderr
