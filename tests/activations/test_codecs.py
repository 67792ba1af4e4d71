"""What every storage codec keeps to, whatever its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.activations.codecs.interface import ROWS, StorageCodec, storage_codec
from pipeline.errors import DataError
from pipeline.params.codecs import STORAGE_CODECS
from pipeline.seeding import generator

NAMES = list(STORAGE_CODECS)


def rows(*shape: int) -> torch.Tensor:
    return 10 * torch.randn(*shape, generator=generator(0, "tests", "codecs"))


def stored(codec: StorageCodec, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """All parts of rows that are measured by themselves."""
    shared = codec.measure(x)
    return {**codec.encode(x, shared), **shared}


@pytest.mark.parametrize("shape", [(6, 8), (3, 4, 8), (0, 8)], ids=["tokens", "contexts", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_as_declared_and_decode_to_the_rows(name: str, shape: tuple[int, ...]) -> None:
    codec, x = storage_codec(name), rows(*shape)
    parts = stored(codec, x)
    assert list(parts) == list(codec.parts) == [*codec.token_parts, *codec.shared_parts]
    assert ROWS in codec.token_parts
    for part, found in parts.items():
        element, width, shared = codec.parts[part]
        assert found.dtype == element.torch_dtype
        assert found.shape == (*(shape[:-1] if shared is None else (shared,)), width or shape[-1])
        assert found.element_size() == np.dtype(element.numpy_dtype).itemsize
    for dtype in (codec.dtype, torch.float32, torch.float64):
        decoded = codec.decode(parts, dtype)
        assert decoded.dtype == dtype
        torch.testing.assert_close(decoded.float(), x, rtol=0.01, atol=0.2)
        out = torch.full(shape, torch.nan, dtype=dtype)
        assert codec.decode(parts, dtype, out) is out
        assert torch.equal(out, decoded)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_is_stored_by_itself(name: str) -> None:
    codec, x = storage_codec(name), rows(6, 8)
    shared = codec.measure(x)
    whole, some = codec.encode(x, shared), codec.encode(x[2:4], shared)
    assert all(torch.equal(whole[part][2:4], some[part]) for part in codec.token_parts)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_can_be_seen_in_the_parts(name: str, value: float) -> None:
    codec, x = storage_codec(name), rows(6, 8)
    x[3, 2] = value
    finite = torch.stack([torch.isfinite(part).all(-1) for part in codec.encode(x, codec.measure(x)).values()]).all(0)
    assert finite.tolist() == [True, True, True, False, True, True]


def test_an_unknown_codec_names_the_known_ones() -> None:
    with pytest.raises(
        DataError, match=r"unknown activations.storage_dtype 'float61'; did you mean 'float16'\? \(known: bfloat16"
    ):
        storage_codec("float61")
