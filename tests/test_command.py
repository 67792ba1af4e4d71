"""Stage commands: one line and an exit code for what went wrong outside the code, a traceback for a bug."""

from __future__ import annotations

import errno
import importlib

import click
import pytest
import torch
from click.testing import CliRunner

from pipeline.command import Output, _stage, stage_command
from pipeline.errors import CheckpointError, DataError, Interrupted, NumericsError, ParamsError, PipelineError
from tests.closure import load_yaml, stage_scripts
from tests.messages import says


def _run(error: BaseException | None = None, *arguments: str):
    @stage_command
    @click.option("--out", default="data/out", help="Where to.")
    def main(params: str, out: str) -> None:
        """Do the thing."""
        if error is not None:
            raise error
        click.echo(f"{params} {out}")

    return CliRunner().invoke(main, list(arguments))


def one_error(stderr: str, *parts: str) -> None:
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    says(line, *parts)


def test_options():
    assert _run().output == "params.yaml data/out\n"
    assert _run(None, "--params", "p.toml", "--out", "x").output == "p.toml x\n"


def test_help():
    result = _run(None, "--help")
    assert result.exit_code == 0
    for part in ("Do the thing.", "--params", "[default: params.yaml]", "[default: data/out]", "YAML, TOML or JSON"):
        assert part in result.output


@pytest.mark.parametrize("kind", [PipelineError, DataError, CheckpointError, NumericsError])
def test_a_fault_is_one_line_and_2(kind):
    result = _run(kind("a.zarr: the store is missing; run it"))
    assert result.exit_code == 2
    assert result.stderr == "error: a.zarr: the store is missing; run it\n"
    assert result.stdout == ""


def test_metrics_that_dvc_has_removed_for_a_run_that_failed_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_text(
        "stages:\n  train:\n    outs:\n    - path: metrics/train.json\n    - path: metrics/there\n"
    )
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "there").write_text("")

    def run(error: BaseException) -> str:
        @stage_command
        @click.option("--metrics", type=Output(), default="metrics/train.json")
        @click.option("--there", type=Output(), default="metrics/there")
        @click.option("--never", type=Output(), default="metrics/never")  # no run has made it
        def main(params: str, **paths: str) -> None:
            raise error

        return CliRunner().invoke(main, []).stderr

    (error,) = run(DataError("a fault")).splitlines()  # by hand nothing was removed
    assert error == "error: a fault"
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    line, error = run(DataError("a fault")).splitlines()
    assert error == "error: a fault"
    says(line, "DVC has removed metrics/train.json of the last run", "git checkout metrics", "dvc checkout", "dvc exp apply")
    assert run(Interrupted("stopped")) == "error: stopped\n"  # the same command goes on
    monkeypatch.setenv("DVC_ROOT", str(tmp_path.parent))  # a queued experiment, whose directory goes with it
    assert run(DataError("a fault")) == "error: a fault\n"


def test_every_wrong_parameter_has_a_line():
    result = _run(ParamsError(["params.yaml: a: wrong", "params.yaml: b: wrong"]))
    assert result.exit_code == 2
    assert result.stderr == "error: params.yaml: a: wrong\nerror: params.yaml: b: wrong\n"


def test_an_interrupt_is_130():
    result = _run(Interrupted("stopped after step 3; the state is saved"))
    assert (result.exit_code, result.stderr) == (130, "error: stopped after step 3; the state is saved\n")
    result = _run(KeyboardInterrupt())
    assert result.exit_code == 130
    one_error(result.stderr, "interrupted", "again")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_2(number):
    result = _run(OSError(number, "full", "data/x"))
    assert result.exit_code == 2
    one_error(result.stderr, "data/x:", "no space", "again")
    one_error(_run(OSError(number, "full")).stderr, "no space", "again")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO])
def test_a_file_that_the_machine_refuses_is_2(number):
    result = _run(OSError(number, "refused", "data/x"))
    assert result.exit_code == 2
    one_error(result.stderr, "data/x:", "refused", "again")


def _chained(cause: BaseException) -> BaseException:
    try:
        try:
            raise cause
        except BaseException as error:
            raise RuntimeError("the writer failed") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        _chained(OSError(errno.ENOSPC, "full", "data/x")),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_in_a_librarys_clothes(error):
    result = _run(error)
    assert result.exit_code == 2
    one_error(result.stderr, "no space", "again")


@pytest.mark.parametrize(
    "error", [ValueError("bug"), OSError(errno.EACCES, "denied"), KeyError("x"), _chained(ValueError("bug"))]
)
def test_a_bug_keeps_its_traceback(error):
    result = _run(error)
    assert result.exception is error
    assert result.exit_code == 1


def test_a_pipeline_error_says_what_it_says_whatever_came_before_it():
    error = DataError("no space for the store")
    error.__context__ = OSError(errno.ENOSPC, "full")
    assert _run(error).stderr == "error: no space for the store\n"


def test_what_was_raised_from_none_is_not_searched():
    error = ValueError("bug")
    error.__context__, error.__suppress_context__ = OSError(errno.ENOSPC, "full"), True
    assert _run(error).exception is error


def test_a_strange_name_stays_on_its_line():
    result = _run(ParamsError(["params.yaml: a: got 'x\ny\0\udc80\x1b[31m'", "params.yaml: b: wrong"]))
    assert _run(DataError("/a\nb: missing")).stderr == "error: /a\\nb: missing\n"
    assert result.stderr == "error: params.yaml: a: got 'x\\ny\\x00\\udc80\\x1b[31m'\nerror: params.yaml: b: wrong\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_is_not_there_is_one_line_and_2(error):
    result = _run(error)
    assert result.exit_code == 2
    one_error(result.stderr, "out of memory", "allocate", "activations.buffer_size")


@pytest.mark.parametrize(
    ("script", "stage"), [("sparse_probing", "sparse_probing"), ("train", "train"), ("generate_activations", "generate")]
)
def test_a_stage_is_named_by_its_script_whatever_decorates_its_function(script: str, stage: str) -> None:
    """`interruption` wraps the first one in a function of contextlib, `outcome_told` the second."""
    main = importlib.import_module(f"stages.{script}").main
    assert _stage(main.callback.__wrapped__) == stage


def test_each_stage_of_the_pipeline_is_named_as_there_and_writes_something() -> None:
    """With outputs it ends with a line of what it wrote and took."""
    for stage, script in stage_scripts(load_yaml("dvc.yaml")).items():
        main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
        assert _stage(main.callback.__wrapped__) == stage
        assert [option for option in main.params if isinstance(option.type, Output)], stage
