"""What sizes take: memory of a device, bytes of the store, tokens a second, hours and money, by arithmetic from measured rates.

    python -m benchmarks.sizes                     # the tables of docs/scale.md
    python -m benchmarks.sizes --price 2.5 --memory 141

Rates are those of benchmarks/results/gpu.json, of one card. A step's floor is the sum of its parts (SPEED: encoder product,
selection, four gathers of the active rows, Adam), each the larger of bytes over the copy's rate and operations over the
product's. A step takes its floor over the share that was measured at S1 (768 x 6,144), or at S3 (4,096 x 131,072) from the
geometric mean of their weights on, and beside that what the trainer's step at S1 took beyond the kernels' step. A token through
the language model takes two operations a weight of the blocks below the hook point, at the share of the product's rate that a
model of 160M parameters reached. Several devices are taken to divide the work: what they send each other was not measured.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import click

MEASURED = Path("benchmarks/results/gpu.json")
TOKENS, K, BATCH = 10**9, 64, 8192
WINDOW_ROWS = 2 * 1_048_576  # activations.buffer_size, the present window and the next
ROW_ARRAYS_BYTES = 4 + 4 + 4 + 1  # token, position, context id, mask
STATE_BYTES = 16  # of a weight in training: itself, its gradient, two moments
USED = 0.9  # of a device's memory


class Model(NamedTuple):
    """A language model: its name, the width of its residual stream, its parameters."""

    name: str
    width: int
    parameters: float


MODELS = (Model("125M", 768, 125e6), Model("1B", 2048, 1e9), Model("8B", 4096, 8e9), Model("70B", 8192, 70e9))
FEATURES = (16_384, 65_536, 262_144, 1_048_576)


class Rates(NamedTuple):
    """What was measured.

    Attributes:
        card: on what.
        bytes: a second, of a copy, read and written.
        operations: a second, of a bfloat16 product.
        small, large: milliseconds of the kernels' step at S1 and at S3.
        beside: milliseconds of the trainer's step at S1 that are not the kernels'.
        model_share: of the product's rate, by the language model.
    """

    card: str
    bytes: float
    operations: float
    small: float
    large: float
    beside: float
    model_share: float


S1, S3 = (768, 6144, 64, 4096), (4096, 131_072, 64, 8192)


def measured(file: Path = MEASURED) -> Rates:
    """The rates of a results file of `python -m benchmarks.gpu`."""
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = {(row["size"], row["what"]): row for row in found["rows"]}
    small = rows["S1", "sparse step, topk"]["ms"]
    return Rates(
        card=found["about"]["card"],
        bytes=rows["-", "copy"]["tb_per_s"] * 1e12,
        operations=rows["-", "bf16 product"]["tflops"] * 1e12,
        small=small,
        large=rows["S3", "sparse step, topk"]["ms"],
        beside=rows["S1", "fit, topk, bfloat16"]["ms"] - small,
        model_share=rows["160M", "generation to layer 6"]["share"],
    )


def floor_ms(rates: Rates, width: int, features: int, k: int, batch: int) -> float:
    """Milliseconds below which a step of TopK in bfloat16 cannot be."""
    n = k * batch
    encoder = max(
        2 * batch * width * features / rates.operations,
        2 * (features * width + batch * width + batch * features) / rates.bytes,
    )
    selection = 2 * batch * features / rates.bytes
    gathers = 4 * 2 * n * width / rates.bytes
    adam = 30 * 2 * width * features / rates.bytes
    return 1e3 * (encoder + selection + gathers + adam)


def step_ms(rates: Rates, width: int, features: int) -> float:
    """Milliseconds of a training step of BATCH tokens, expected of one device."""
    between = math.sqrt(S1[0] * S1[1] * S3[0] * S3[1])
    size, ms = (S1, rates.small) if width * features < between else (S3, rates.large)
    share = floor_ms(rates, *size) / ms
    return floor_ms(rates, width, features, K, BATCH) / share + rates.beside


def state_bytes(width: int, features: int) -> int:
    """Weights, gradients and moments: two matrices, a bias of each feature and of each dimension."""
    return STATE_BYTES * (2 * width * features + features + width)


def device_bytes(width: int, features: int, devices: int) -> int:
    """Of a device with its part of the features: their state, gating values of a batch in bfloat16, input, output and error."""
    part = -(-features // devices)
    return state_bytes(width, part) + 2 * BATCH * part + 3 * 4 * BATCH * width


def devices_needed(width: int, features: int, memory_gb: float) -> int:
    """The fewest devices, a power of two, that hold it."""
    devices = 1
    while device_bytes(width, features, devices) > USED * memory_gb * 1e9:
        devices *= 2
    return devices


def store_bytes(width: int, tokens: int, dtype: str) -> int:
    """Of one hook point: bfloat16, or int8 with a scale of each token."""
    row = {"bfloat16": 2 * width, "int8": width + 4}[dtype]
    return tokens * (row + ROW_ARRAYS_BYTES)


def model_tokens_per_second(rates: Rates, model: Model) -> float:
    """Through the lower half of the blocks, on one device."""
    return rates.model_share * rates.operations / (2 * model.parameters / 2)


def gpu_hours(rates: Rates, model: Model, features: int, tokens: int) -> tuple[float, float]:
    """Of one pass of the language model, and of one of the training."""
    training = tokens / BATCH * step_ms(rates, model.width, features) / 1e3
    return tokens / model_tokens_per_second(rates, model) / 3600, training / 3600


def words(n_bytes: float) -> str:
    """7.5 GB."""
    for unit in ("MB", "GB", "TB"):
        n_bytes /= 1e3 if unit != "MB" else 1e6
        if n_bytes < 1000:
            break
    else:
        return f"{n_bytes / 1e3:.3g} PB"
    return f"{n_bytes:.3g} {unit}"


def number(x: float) -> str:
    """Three digits: 0.0123, 1.23, 12.3, 1,230."""
    digits = max(0, 2 - math.floor(math.log10(x)))
    return f"{x:,.{digits}f}" if digits else f"{round(x, 2 - math.floor(math.log10(x))):,.0f}"


def sizes_table(rates: Rates, memory_gb: float, price: float) -> list[str]:
    """Lines of Markdown: a billion tokens, of each model and number of features."""
    lines = [
        "| model, width | features | state | on 1 device | on 8 | devices | tokens/s of one | GPU hours: model | training "
        "| USD |",
        "|---|" + "---:|" * 9,
    ]
    for model in MODELS:
        for features in FEATURES:
            once, trained = gpu_hours(rates, model, features, TOKENS)
            speed = BATCH / step_ms(rates, model.width, features) * 1e3
            cells = [
                f"{model.name}, {model.width:,}",
                f"{features:,}",
                words(state_bytes(model.width, features)),
                words(device_bytes(model.width, features, 1)),
                words(device_bytes(model.width, features, 8)),
                f"{devices_needed(model.width, features, memory_gb)}",
                number(speed),
                number(once),
                number(trained),
                number(price * (once + trained)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def models_table(rates: Rates) -> list[str]:
    """Lines of Markdown: what of a size does not depend on the features."""
    lines = [
        "| model | width | weights, bfloat16 | 8 bits | 4 bits | tokens/s of one device | store of a billion tokens | int8 "
        "| windows |",
        "|---|" + "---:|" * 8,
    ]
    for model in MODELS:
        cells = [
            model.name,
            f"{model.width:,}",
            *(words(model.parameters * bits / 8) for bits in (16, 8, 4)),
            number(model_tokens_per_second(rates, model)),
            words(store_bytes(model.width, TOKENS, "bfloat16")),
            words(store_bytes(model.width, TOKENS, "int8")),
            words(2 * WINDOW_ROWS * model.width),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def trillion(rates: Rates, memory_gb: float, price: float) -> str:
    """A trillion tokens and 1,048,576 features on the model of 8B, in words."""
    model, features, tokens = MODELS[2], FEATURES[-1], 10**12
    once, trained = gpu_hours(rates, model, features, tokens)
    devices = devices_needed(model.width, features, memory_gb)
    days = (once + trained) / 1024 / 24
    stored, small = (words(store_bytes(model.width, tokens, dtype)) for dtype in ("bfloat16", "int8"))
    return (
        f"One trillion tokens of the {model.name} model into {features:,} features: a store of {stored} in bfloat16 or {small} "
        f"in int8, or live activations and none; {number(once)} GPU hours of the model and {number(trained)} of the training, "
        f"whose state needs {devices} devices; {number(price * (once + trained))} USD; on 1,024 devices {number(days)} days at "
        "best."
    )


def page(rates: Rates, memory_gb: float, price: float) -> str:
    """All of it."""
    return "\n".join([*models_table(rates), "", *sizes_table(rates, memory_gb, price), "", trillion(rates, memory_gb, price)])


@click.command()
@click.option("--price", default=3.0, show_default=True, help="USD for an hour of one GPU.")
@click.option("--memory", "memory_gb", default=80.0, show_default=True, help="GB of a device.")
def main(price: float, memory_gb: float) -> None:
    """Print the tables."""
    click.echo(page(measured(), memory_gb, price))


if __name__ == "__main__":
    main()
