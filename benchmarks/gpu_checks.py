"""Correctness on a device: every kernel against plain torch in float64, dictionaries and fit against the CPU and themselves,
batches of the store that are decoded on the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_step import SparseStep
from benchmarks.gpu_training import refusing, resident, trainer
from pipeline.activation_functions.interface import activation_function, activation_function_names
from pipeline.activations.batches import Encoded
from pipeline.activations.codecs.interface import ROWS, storage_codec
from pipeline.dictionaries.base import Dictionary, Gate
from pipeline.dictionaries.build import build_dictionary, kind_names
from pipeline.kernels.gpu import accumulate, select_batch, select_rows
from pipeline.kernels.gpu.adam import adam_, bias_corrections
from pipeline.kernels.gpu.decode import decoding_error, sparse_decode, values_gradient
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.params.codecs import STORAGE_CODECS
from pipeline.params.dictionary_kinds import kind_fields
from pipeline.training.fit import fit
from pipeline.training.source import TensorSource, TrainingBatch, on_device

Check = tuple[str, str | None]  # what was checked, and what is wrong or None
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TIMES = 2  # that a kernel runs, for the same bits each time
LAYERS = ("blocks.0.ln2.hook_out", "blocks.1.ln2.hook_out"), ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")
KINDS: dict[str, dict[str, Any]] = {
    "sae": {"use_glu_encoder": True},
    "transcoder": {"d_out": 24, "hook_point_in": "a", "hook_point_out": "b", "skip": True},
    "clt": {"hook_points_in": LAYERS[0], "hook_points_out": LAYERS[1]},
    "crosscoder": {"hook_points_in": ("a", "b")},
    "lorsa": {
        "hook_point_in": "a", "hook_point_out": "b", "n_qk_heads": 4, "d_qk_head": 4, "n_ctx": 16, "rotary_dim": 2,
    },
}  # fmt: skip


def _checked(name: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except Exception as error:  # whatever it is, the other checks go on
        return name, f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
    return name, None


def check_kernels(device: torch.device) -> Iterator[Check]:
    """Each kernel at odd sizes, k of 1 and F, ties, empty rows, long runs; twice, for the same bits."""
    for dtype in DTYPES:
        for n_rows, n_columns, k in ((3, 17, 1), (4, 33, 33), (2, 3000, 64), (3, 9001, 50), (1, 20000, 130)):
            for ties in (False, True):
                name = f"select_rows {dtype} {n_rows} x {n_columns}, k {k}, ties {ties}"
                yield _checked(name, lambda a=(device, dtype, n_rows, n_columns, k, ties): _rows(*a))  # type: ignore[misc]
        for n_rows, n_columns, n in ((3, 17, 1), (4, 33, 132), (7, 5000, 300), (40, 4097, 999)):
            for ties in (False, True):
                name = f"select_batch {dtype} {n_rows} x {n_columns}, n {n}, ties {ties}"
                yield _checked(name, lambda a=(device, dtype, n_rows, n_columns, n, ties): _batch(*a))  # type: ignore[misc]
        for n_tokens, n_features, d in ((1, 1, 1), (6, 40, 70), (700, 37, 1030)):
            name = f"decode, gradients {dtype} {n_tokens} x {n_features} x {d}"
            yield _checked(name, lambda a=(device, dtype, n_tokens, n_features, d): _products(*a))  # type: ignore[misc]
    yield _checked("adam_", lambda: _adam(device))
    for gate in ("topk", "batchtopk"):
        yield _checked(f"a step, {gate}: entries against dense products", lambda g=gate: _step(device, g))  # type: ignore[misc]


def _values(shape: tuple[int, ...], dtype: torch.dtype, ties: bool, device: torch.device) -> Tensor:
    values = torch.randn(shape, device=device)
    return ((values * 2).round() if ties else values).to(dtype)


def _rows(device: torch.device, dtype: torch.dtype, n_rows: int, n_columns: int, k: int, ties: bool) -> None:
    for scale in (None, torch.rand(n_columns, device=device) + 0.1):
        h = _values((n_rows, n_columns), dtype, ties, device)
        h[0, n_columns // 2] = torch.nan
        gating = (h.float() if scale is None else h.float() * scale).double().nan_to_num(nan=torch.inf)
        want = gating.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(1).values
        for _ in range(TIMES):
            index, values = select_rows.select_rows(h, k, scale)
            assert torch.equal(index.long(), want), "other places"
            assert torch.equal(values.nan_to_num(9.0), h.gather(1, want).nan_to_num(9.0)), "other values"


def _batch(device: torch.device, dtype: torch.dtype, n_rows: int, n_columns: int, n: int, ties: bool) -> None:
    z = _values((n_rows, n_columns), dtype, ties, device)
    want = z.double().reshape(-1).sort(descending=True, stable=True).indices[:n].sort().values
    starts = torch.searchsorted(want, torch.arange(n_rows + 1, device=device) * n_columns)
    usual = select_batch.SLACK
    for slack in (usual, 0.0):  # 0: a bound that is too high, so that the second histogram is needed
        select_batch.SLACK = slack
        try:
            flat, values, offsets = select_batch.select_batch(z, n)
        finally:
            select_batch.SLACK = usual
        assert torch.equal(flat, want), "other places"
        assert torch.equal(values, z.reshape(-1)[want]), "other values"
        assert torch.equal(offsets.long(), starts), "other offsets"


def _products(device: torch.device, dtype: torch.dtype, n_tokens: int, n_features: int, d: int) -> None:
    """A skewed use of the features, so that some runs are long and some tokens and features have no entry."""
    use = torch.rand(n_tokens, n_features, device=device) < 0.9 / (1 + torch.arange(n_features, device=device))
    use[n_tokens // 2] &= n_tokens == 1
    tokens, index = (t.int() for t in use.nonzero(as_tuple=True))
    offsets = torch.nn.functional.pad(use.sum(1).cumsum(0), (1, 0)).int()
    values = torch.randn(len(index), device=device)
    weight, x = (torch.randn(n, d, device=device).to(dtype) for n in (n_features, n_tokens))
    bias = torch.randn(d, device=device)
    f = torch.zeros(n_tokens, n_features, dtype=torch.float64, device=device)
    f[tokens.long(), index.long()] = values.double()
    close = {"rtol": 1e-5, "atol": 1e-5}
    for _ in range(TIMES):
        runs = accumulate.feature_runs(index, tokens, n_features)
        sums, bias_sums = accumulate.accumulate_rows(values, x, runs, with_bias=True)
        assert bias_sums is not None
        torch.testing.assert_close(sums.double(), f.T @ x.double(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(bias_sums.double(), f.sum(0), rtol=1e-4, atol=1e-4)
        again, _ = accumulate.accumulate_rows(values, x, runs)
        assert torch.equal(sums, again), "other bits the second time"
        x_hat = sparse_decode(values, index, offsets, weight, bias, torch.float32)
        torch.testing.assert_close(x_hat.double(), f @ weight.double() + bias.double(), **close)
        error, squares = decoding_error(values, index, offsets, weight, bias, x, 0.5)
        want_error = f @ weight.double() + bias.double() - x.double()
        step = 1e-5 if dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(error.double(), want_error / 2, rtol=step, atol=step)
        torch.testing.assert_close(squares.double(), want_error.square().sum(1), rtol=1e-5, atol=1e-5)
        by_value = values_gradient(x, index, offsets, weight)
        want = (x.double() @ weight.double().T)[tokens.long(), index.long()]
        torch.testing.assert_close(by_value.double(), want, rtol=1e-4, atol=1e-3)


def _adam(device: torch.device) -> None:
    weight = torch.randn(3001, device=device)
    moments = [torch.randn_like(weight), torch.rand_like(weight)]
    gradient, copy = torch.randn_like(weight), torch.zeros_like(weight, dtype=torch.bfloat16)
    want = weight.double().requires_grad_()
    want.grad = gradient.double()
    reference = torch.optim.Adam([want], lr=0.01)
    state = {"step": torch.tensor(4.0), "exp_avg": moments[0].double(), "exp_avg_sq": moments[1].double()}
    reference.state[want] = state
    reference.step()
    scalars = bias_corrections(torch.tensor(0.01, device=device), torch.tensor(5.0, device=device), (0.9, 0.999))
    before = weight.clone()
    adam_(weight, gradient, *moments, scalars, copy=copy, skip=torch.ones((), device=device))
    assert torch.equal(weight, before), "a skipped step changed the weight"
    adam_(weight, gradient, *moments, scalars, copy=copy, skip=torch.zeros((), device=device))
    torch.testing.assert_close(weight.double(), want.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(copy.float(), weight, rtol=2**-7, atol=0.0)  # cut off or rounded


def _step(device: torch.device, gate: str, d: int = 48, f: int = 100, k: int = 3, n_tokens: int = 16) -> None:
    found = []
    for dense in (False, True):
        torch.manual_seed(0)
        found.append(SparseStep(d, f, k, n_tokens, gate, device, dense).gradients())
    for name, ours in found[0].items():
        theirs = found[1][name]
        error = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
        assert float(error) < 5e-3, f"{name}: relative difference {float(error):.2e}"


def check_dictionaries(device: torch.device) -> Iterator[Check]:
    """Every kind with every activation function on the device against the CPU, in float64; fit twice for the same bits."""
    for kind in kind_names():
        layered = kind_fields(kind).HAS_LAYERS
        for act_fn in activation_function_names():
            if layered or not activation_function(act_fn).joint_layers:
                yield _checked(f"{kind}, {act_fn}: gradients", lambda a=(device, kind, act_fn): _gradients(*a))  # type: ignore[misc]
    for act_fn in ("topk", "batchtopk", "jumprelu"):
        yield _checked(f"fit, {act_fn}: same bits twice, FVU of the CPU", lambda a=(device, act_fn): _fit(*a))  # type: ignore[misc]


def check_entries(device: torch.device) -> Iterator[Check]:
    """Every kind with every activation function by the Triton kernels against dense products in float64, gradients included."""
    d_sae = 96 if device.type == "cuda" else 12  # interpreted, a program a feature takes its time
    for kind, act_fn in entry_cases():
        yield _checked(f"{kind}, {act_fn}: by entries", lambda a=(device, kind, act_fn, d_sae): _entries(*a))  # type: ignore[misc]


def check_graph(device: torch.device) -> Iterator[Check]:
    """Steps by the trainer's CUDA graph against the same steps without; nothing where there is no CUDA."""
    if device.type == "cuda":
        for act_fn in ("topk", "batchtopk", "jumprelu"):
            for threshold in (0.0, 1.0):
                name = f"graph of a step, {act_fn}, {'entries' if threshold == 0 else 'dense'}"
                yield _checked(name, lambda a=(device, act_fn, threshold): _graph(*a))  # type: ignore[misc]


def _graph(device: torch.device, act_fn: str, threshold: float) -> None:
    rows = torch.randn(2048, 24, generator=torch.Generator().manual_seed(4)).to(device)
    fields = {"d_in": 24, "d_sae": 96, "act_fn": act_fn, "sparsity_threshold_for_triton_spmm_kernel": threshold}
    trained = {"amp_dtype": "bfloat16", "lr": 1e-3, **({"target_l0": 4.0} if act_fn == "jumprelu" else {})}
    found = []
    for graph in (True, False):
        run = trainer(device, fields | ({} if act_fn == "jumprelu" else {"top_k": 4}), trained, 60, 256)
        if not graph:
            run.capture(refusing)
        batches = resident(rows, 256)
        for _ in range(60):
            run.step(next(batches))
        found.append({name: tensor.clone() for name, tensor in run.state().items()})
    different = [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]
    assert not different, f"other bits with a graph: {', '.join(different)}"


def entry_cases() -> list[tuple[str, str]]:
    """Kinds and activation functions that have a way by entries."""
    found = []
    for kind, act_fn in itertools.product(kind_names(), activation_function_names()):
        activation, layered = activation_function(act_fn), kind_fields(kind).HAS_LAYERS
        thresholds = activation.has_threshold and kind in ("clt", "crosscoder", "lorsa")
        if (layered or not activation.joint_layers) and not thresholds and (activation.budgeted or kind != "lorsa"):
            found.append((kind, act_fn))
    return found


def _entries(device: torch.device, kind: str, act_fn: str, d_sae: int) -> None:
    """The same bits twice, and as near to dense products in float64 as those in float32 are, or to 1e-5.

    Gradients of attention in float32 are 2e-5 off, whatever computes the rest.
    """
    ours, again = (_by_entries(device, kind, act_fn, d_sae, torch.float32, by_triton=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(ours, again, strict=True)), "other bits the second time"
    cpu = torch.device("cpu")
    dense, wanted = (_by_entries(cpu, kind, act_fn, d_sae, dtype, by_triton=False) for dtype in (torch.float32, torch.float64))
    for one, rounded, right in zip(ours, dense, wanted, strict=True):
        error, rounding = (
            float(torch.linalg.vector_norm(each.double() - right) / torch.linalg.vector_norm(right).clamp_min(1e-12))
            for each in (one, rounded)
        )
        assert error < max(1e-5, 2 * rounding), f"relative difference {error:.2e}, of dense products in float32 {rounding:.2e}"


def _by_entries(
    device: torch.device, kind: str, act_fn: str, d_sae: int, dtype: torch.dtype, by_triton: bool
) -> list[torch.Tensor]:
    """Reconstruction, features and gradients of the reconstruction loss."""
    rng = torch.Generator().manual_seed(2)
    tokens = (2, d_sae // 6)
    x = torch.randn(*tokens, *((2, 24) if kind in ("clt", "crosscoder") else (24,)), generator=rng) * 3
    given, kept = x.to(device, dtype), (torch.rand(tokens, generator=rng) < 0.8).to(device)
    fields = {"use_triton_kernel": by_triton, "sparsity_threshold_for_triton_spmm_kernel": 0.0, "d_sae": d_sae}
    made = _made(kind, act_fn, dtype=str(dtype).removeprefix("torch."), **fields).to(device)
    if by_triton:
        codes = made.step_codes(given, kept, Gate(share=0.0), decoded_only=True)
        assert codes.entries is not None, "nothing was done by entries"
    else:
        codes = made.codes(given, kept)
    x_hat = made.reconstructions(codes, given)[-1]
    reconstruction_loss(x_hat, given, kept).backward()
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    return [t.detach().cpu() for t in (x_hat, codes.f, *gradients)]


def _made(kind: str, act_fn: str, **fields: Any) -> Dictionary:
    config = {"kind": kind, "d_in": 24, "d_sae": 96, "act_fn": act_fn, "top_k": 4, "dtype": "float64", **KINDS[kind], **fields}
    made = build_dictionary({**config, "decoder_uniform_bound": 0.2, "encoder_uniform_bound": 0.2}, seed=1)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name != "log_jumprelu_threshold":
                parameter.add_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.1)
    return made


def _gradients(device: torch.device, kind: str, act_fn: str) -> None:
    rng = torch.Generator().manual_seed(2)
    n_in = 2 if kind in ("clt", "crosscoder") else 1
    shape = (4, 16, 24) if n_in == 1 else (4, 16, 2, 24)
    x = torch.randn(shape, generator=rng, dtype=torch.float64) * 3
    mask = torch.rand(4, 16, generator=rng) < 0.8
    found = []
    for where in (torch.device("cpu"), device):
        made = _made(kind, act_fn).to(where)
        codes, x_hat = made.run(x.to(where), mask.to(where))
        loss = reconstruction_loss(x_hat, x.to(where), mask.to(where)) + (codes.f * codes.norms).sum() * 1e-3
        loss.backward()
        gradients = [p.grad for p in made.parameters() if p.grad is not None]
        found.append([t.detach().cpu() for t in (loss, codes.f, *gradients)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-8, atol=1e-8)


def _fit(device: torch.device, act_fn: str) -> None:
    rng = torch.Generator().manual_seed(3)
    directions = torch.randn(64, 24, generator=rng)
    codes = torch.rand(20_000, 64, generator=rng) * (torch.rand(20_000, 64, generator=rng) < 0.06)
    rows = codes @ directions + 0.5
    trainer: dict[str, Any] = {"total_training_tokens": 100_000}
    dictionary: dict[str, Any] = {"d_sae": 96, "act_fn": act_fn}
    if act_fn == "jumprelu":
        trainer["target_l0"] = 4.0
    else:
        dictionary["top_k"] = 4
    made = [
        fit(rows.to(where), dictionary=dictionary, trainer=trainer, batch_size=512, device=where)
        for where in (device, device, torch.device("cpu"))
    ]
    one, same = (result.dictionary.state_dict() for result in made[:2])
    assert all(torch.equal(one[name], same[name]) for name in one), "other bits the second time"
    fvu = []
    for result in made:
        x = rows.to(next(result.inference.parameters()).device)
        with torch.no_grad():
            error = (result.inference(x) - x).square().sum()
        fvu.append(float(error / (x - x.mean(0)).square().sum()))
    assert abs(fvu[0] - fvu[2]) < 0.1 * fvu[2] + 0.005, f"FVU {fvu[0]:.4f}, on the CPU {fvu[2]:.4f}"


def check_reading(device: torch.device) -> Iterator[Check]:
    """Every storage codec on the device against the CPU, and the batches that a training is given."""
    for name in STORAGE_CODECS:
        yield _checked(f"{name}: encoded and decoded on the device", lambda a=(device, name): _codec(*a))  # type: ignore[misc]
    yield _checked("batches moved and decoded while others are used", lambda: _ahead(device))


def _rows_and_parts(name: str, n: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows [n, 96] on the CPU, and as a codec stores them."""
    codec = storage_codec(name)
    x = torch.randn(n, 96, generator=torch.Generator().manual_seed(4)) * torch.linspace(0.1, 5, 96) + 3
    shared = codec.measure(x)
    return x, {**codec.encode(x, shared), **shared}


def _codec(device: torch.device, name: str) -> None:
    codec, (x, parts) = storage_codec(name), _rows_and_parts(name, 5000)
    shared = codec.measure(x.to(device))
    for part, values in {**codec.encode(x.to(device), shared), **shared}.items():
        torch.testing.assert_close(values.cpu(), parts[part], rtol=1e-3, atol=1 if values.dtype == torch.int8 else 1e-6)
    pinned = {part: values.pin_memory() if device.type == "cuda" else values for part, values in parts.items()}
    for dtype in (torch.float32, torch.bfloat16):
        found = Encoded(pinned, codec, dtype).on(device)
        assert found.device.type == device.type
        torch.testing.assert_close(
            found.cpu(), codec.decode(parts, dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
        )


def _ahead(device: torch.device) -> None:
    """Batches are right while the device is busy with others, from memory of the device and decoded on it."""
    codec, (_, parts) = storage_codec("int8"), _rows_and_parts("int8", 64 * 1000)
    whole = codec.decode(parts, torch.float32).to(device)
    busy = torch.randn(2000, 2000, device=device)

    def decoded() -> Iterator[TrainingBatch]:
        for i in range(64):
            some = {part: x[i * 1000 : (i + 1) * 1000] if len(x) == 64_000 else x for part, x in parts.items()}
            if device.type == "cuda":
                some[ROWS] = some[ROWS].pin_memory()
            rows = Encoded(some, codec, torch.float32).on(device)
            yield TrainingBatch(i, rows, rows)

    for batch in on_device(decoded(), device, torch.float32):
        (busy @ busy).sum()
        wanted = whole[batch.index * 1000 : (batch.index + 1) * 1000]
        torch.testing.assert_close(batch.inputs, wanted, rtol=1e-5, atol=1e-5)
    source, here = (TensorSource(x, batch_size=1000, seed=5) for x in (whole * 2, whole.cpu() * 2))
    for batch, wanted_batch in zip(on_device(source.batches(0), device, torch.float32), here.batches(0), strict=False):
        torch.testing.assert_close(batch.inputs.cpu(), wanted_batch.inputs)
        if batch.index == 20:
            break
