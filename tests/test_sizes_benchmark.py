"""The table of sizes in docs/scale.md: cells worked out by hand, and the page as the script prints it."""

from __future__ import annotations

import pytest

from benchmarks import sizes
from benchmarks.sizes import MODELS, Rates, measured
from tests.project import REPOSITORY

ROUND = Rates("a card", bytes=1e12, operations=1e14, small=2.0, large=40.0, beside=3.0, model_share=0.5)


def test_the_floor_of_a_step_by_hand() -> None:
    """4,096 x 131,072, k 64, batch 8,192: 2 x 8,192 x 4,096 x 131,072 = 8.796e12 operations are 87.96 ms at 1e14 a second; 2.147e9
    bytes of gating values 2.147 ms at 1e12; four gathers of 524,288 rows of 8,192 bytes 17.180 ms; Adam, 30 bytes of
    1.0737e9 weights, 32.212 ms."""
    assert sizes.floor_ms(ROUND, 4096, 131_072, 64, 8192) == pytest.approx(87.961 + 2.147 + 17.180 + 32.212, abs=0.002)


def test_a_step_takes_its_floor_over_the_share_and_what_is_beside() -> None:
    """At S3 itself it is what was measured, and 3 ms; a narrow one goes by S1."""
    assert sizes.step_ms(ROUND, 4096, 131_072) == pytest.approx(40.0 + 3.0)
    narrow = sizes.floor_ms(ROUND, 768, 6144, 64, 8192) / sizes.floor_ms(ROUND, 768, 6144, 64, 4096) * 2.0 + 3.0
    assert sizes.step_ms(ROUND, 768, 6144) == pytest.approx(narrow)


def test_memory_by_hand() -> None:
    """16 bytes of 2 x 4,096 x 1,048,576 + 1,048,576 + 4,096 weights: 137.456 GB; an eighth of the features: 17.182 GB, of gating
    values 2 x 8,192 x 131,072 = 2.147 GB, of rows 3 x 4 x 8,192 x 4,096 = 0.403 GB."""
    assert sizes.state_bytes(4096, 1_048_576) == 137_455_796_224
    assert sizes.device_bytes(4096, 1_048_576, 8) == 17_182_031_872 + 2_147_483_648 + 402_653_184
    assert sizes.devices_needed(4096, 131_072, 80.0) == 1
    assert sizes.devices_needed(4096, 1_048_576, 80.0) == 4  # 155 GB: 77.5 on each of two are more than 72
    assert sizes.devices_needed(4096, 1_048_576, 141.0) == 2


def test_a_store_by_hand() -> None:
    """A thousand tokens of width 768: 1,536 bytes a row and 13 of where it is from; int8: 768, 4 and 13."""
    assert sizes.store_bytes(768, 1000, "bfloat16") == 1_549_000
    assert sizes.store_bytes(768, 1000, "int8") == 785_000


def test_hours_by_hand() -> None:
    """8e9 parameters, half of them twice: 8e9 operations a token at 0.5 x 1e14 a second are 6,250 tokens a second; 4.5e9 tokens
    take 200 hours. At 8,192 tokens in 43 ms the training of 4.5e9 takes 4.5e9 / 8,192 x 0.043 / 3,600 = 6.561 hours."""
    assert sizes.model_tokens_per_second(ROUND, MODELS[2]) == pytest.approx(6250.0)
    once, trained = sizes.gpu_hours(ROUND, MODELS[2], 131_072, 4_500_000_000)
    assert once == pytest.approx(200.0)
    assert trained == pytest.approx(6.561, abs=0.001)


@pytest.mark.parametrize(
    ("value", "wanted"), [(0.01234, "0.0123"), (1.2345, "1.23"), (12.345, "12.3"), (123.45, "123"), (1234567.0, "1,230,000")]
)
def test_three_digits(value: float, wanted: str) -> None:
    assert sizes.number(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(62.5e6, "62.5 MB"), (3.2e9, "3.2 GB"), (137.456e9, "137 GB"), (8.21e12, "8.21 TB"), (8.21e15, "8.21 PB")],
)
def test_bytes_in_words(value: float, wanted: str) -> None:
    assert sizes.words(value) == wanted


def test_the_rates_are_the_measured_ones() -> None:
    """And the memory that was measured at S3 is what is worked out, within 5 %: 20.17 GB, the kernels' step with a copy of the
    weights in bfloat16."""
    rates = measured(REPOSITORY / sizes.MEASURED)
    assert (rates.card, rates.bytes, rates.operations) == ("NVIDIA H200", 4.13e12, 775e12)
    assert (rates.small, rates.large, rates.model_share) == (0.7432, 27.3198, 0.345)
    assert rates.beside == pytest.approx(4.6402 - 0.7432)
    assert sizes.device_bytes(4096, 131_072, 1) == pytest.approx(20.17e9, rel=0.05)


def test_the_page_is_what_the_script_prints() -> None:
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    for line in sizes.page(measured(REPOSITORY / sizes.MEASURED), 80.0, 3.0).splitlines():
        assert line in page
