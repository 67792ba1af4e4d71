"""What `stages.inspect` prints: the features of a text's tokens, a feature's tokens, or the steered model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from pipeline.analysis.attribution import Attribution, attribute, writes_residual_stream, written_directions
from pipeline.analysis.inspection import Inspection, inspect_text
from pipeline.analysis.labels import KnownFeatures, known_features
from pipeline.analysis.loading import load_for_analysis
from pipeline.analysis.steering import Steering, steer
from pipeline.analysis.texts import feature_index
from pipeline.errors import DataError
from pipeline.files import read_bytes
from pipeline.foreign import reading
from pipeline.plots.training_report import describe

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.params.schema import Params


SHOWN = 6  # tokens that a feature promotes, and suppresses


@dataclass(frozen=True)
class Continuation:
    """How the steered model goes on.

    Attributes:
        n_tokens, temperature, seed: see pipeline.lm.language_model.LanguageModel.generate.
    """

    n_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0


def print_inspections(
    params: Params,
    texts: Iterable[str],
    *,
    dictionary: Path,
    norms: str | Path,
    top: int = 4,
    features: Sequence[str] = (),
    steered: str | None = None,
    strength: float | None = None,
    continuation: Continuation | None = None,
    alias: str | None = None,
    known: tuple[Path, Path] | None = None,
) -> None:
    """Print the strongest features of each token; or the tokens of `features`; or what adding feature `steered` does.

    Args:
        params: the models, context size.
        texts: what the model reads, one after another; it is loaded once.
        dictionary: directory of the inference dictionary.
        norms: norms.json, for a dictionary that is not folded.
        top: features of a token, and tokens of a feature.
        strength: of the steering; None: the feature's largest activation in the feature store, without one twice the largest on
            the text.
        continuation: what the model writes after the text.
        alias: of the model that is steered, or whose logits a feature changes; None: the main one, or the first one.
        known: folders of the feature store and of explanations, which need not be there; None: neither is read.

    Raises:
        DataError: no such feature or model, a dictionary or a text that is not there.
    """
    asked = [*features, *(() if steered is None else (steered,))]
    found = load_for_analysis(params, dictionary, norms=norms, features=asked)
    model = found.model(alias := found.alias if alias is None else alias)
    there = KnownFeatures() if known is None else _known_of(found.dictionary, *known)
    bos, size = params.model.prepend_bos, params.activations.context_size
    config = found.dictionary.config
    click.echo(describe(config.to_dict(), params.language_model(found.alias).model_name, layers=config.layers))
    chosen = torch.tensor([feature_index(feature, found.dictionary.feature_shape) for feature in features], dtype=torch.int64)
    effects: list[Attribution | None] = [None] * len(features)
    if features and writes_residual_stream(found.dictionary):
        effects = [*attribute(written_directions(found.dictionary, found.norms, alias)[chosen], model)]
    for number, text in enumerate(texts):
        if number:
            click.echo()
        inspection = inspect_text(text, found.dictionary, found.models, norms=found.norms, context_size=size, prepend_bos=bos)
        if steered is not None:
            added, where = steering_strength(inspection, steered, strength, there)
            how = continuation or Continuation()
            result = steer(
                text,
                found.dictionary,
                model,
                steered,
                added,
                norms=found.norms,
                n_tokens=how.n_tokens,
                temperature=how.temperature,
                seed=how.seed,
                prepend_bos=bos,
                alias=alias,
            )
            show_steering(result, steered, added, where, there.labels)
        elif features:
            for feature, effect in zip(features, effects, strict=True):
                show_feature(inspection, feature, top, effect, there.labels)
        else:
            show_tokens(inspection, top, there.labels)


def _known_of(dictionary: Dictionary, features: Path, interpretations: Path) -> KnownFeatures:
    """What is known of its features; nothing, and a line that says why, where files are damaged or of another dictionary."""
    try:
        return known_features(features, interpretations, dictionary)
    except DataError as error:
        click.echo(f"warning: features are shown without labels: {error}", err=True)
        return KnownFeatures()


def texts_of(given: Sequence[str], file: Path | None, lines: bool) -> Iterator[str]:
    """The texts of one of the three options; of lines each when it is asked for, so that an answer comes before the next line.

    Raises:
        DataError: none of them, several, or a file that cannot be read.
    """
    if bool(given) + (file is not None) + lines != 1:
        raise DataError("give texts as --text, --file or --lines, one of them")
    if lines:
        return _lines()
    return iter(given if file is None else [read_text(file)])


def _lines() -> Iterator[str]:
    """The lines of standard input that hold something; a prompt on a terminal."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            click.echo("text (Ctrl-D ends): ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def steering_strength(inspection: Inspection, feature: str, stated: float | None, known: KnownFeatures) -> tuple[float, str]:
    """What is added, and where it comes from.

    Raises:
        DataError: nothing is stated, and the feature is active neither in the feature store nor on the text.
    """
    if stated is not None:
        return stated, "as stated"
    if known.folder:
        largest_known = known.largest.get(feature)
        if largest_known is not None:
            return largest_known, f"its largest activation in {known.folder}"
    return 2 * largest(inspection, feature), "twice its largest activation on the text"


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        DataError: it cannot be read.
    """
    content = read_bytes(file, "the text", "give a text file in UTF-8")
    with reading(f"{file}: the text is not UTF-8", "give a text file in UTF-8"):
        return content.decode()


def largest(inspection: Inspection, feature: str) -> float:
    """A feature's largest activation on the text, excluded tokens left out.

    Raises:
        DataError: it is not active.
    """
    values = [value for token, value in inspection.of_feature(feature) if token not in inspection.excluded]
    if not values:
        but = " but on excluded tokens" if inspection.of_feature(feature, 1) else ""
        raise DataError(f"feature {feature} is not active on this text{but}; state --strength")
    return values[0]


def mark(inspection: Inspection, token: int) -> str:
    """What is said of an excluded token; nothing of others."""
    times = inspection.excluded.get(token)
    return "" if times is None else f"  excluded: massive ({times:,.0f} x the median norm)"


def show_tokens(inspection: Inspection, top: int, labels: Mapping[str, str]) -> None:
    """A line for each token, and what is known of the features that were shown."""
    shown = [ascii(token)[1:-1] if token.isspace() or not token.isprintable() else token for token in inspection.tokens]
    width = min(max(len(token) for token in shown), 24)
    named: dict[str, None] = {}
    for i, token in enumerate(shown):
        strongest = inspection.strongest(i, top)
        cells = [f"{name:>6} {value:<8.3g}" for name, value in strongest]
        found = " ".join(cells).rstrip() if inspection.kept[i] else "(special token)"
        click.echo(f"{i:>5}  {token[:width].ljust(width)}  {found}{mark(inspection, i)}".rstrip())
        named |= dict.fromkeys(name for name, _ in strongest)
    known = [name for name in named if name in labels]
    for name in known:
        click.echo(f"{name:>6}  {labels[name]}")


def show_feature(inspection: Inspection, feature: str, top: int, effect: Attribution | None, labels: Mapping[str, str]) -> None:
    """A feature's strongest tokens, with the text around them, what is known of it, and what it does to the logits."""
    tokens = inspection.of_feature(feature)
    few = f", the {top} strongest below (--top)" if len(tokens) > top else ""
    click.echo(
        f"feature {feature}: active on {len(tokens)} of {int(inspection.kept.sum())} tokens{few}{_known(feature, labels)}"
    )
    for token, value in tokens[:top]:
        around = inspection.around(token).replace("\n", "\\n")
        click.echo(f"{token:>5}  {value:<8.3g} {around}{mark(inspection, token)}")
    for name, found in () if effect is None else (("promotes", effect.promoted), ("suppresses", effect.suppressed)):
        click.echo(f"  {name:<10} {'  '.join(f'{token!r} {value:+.3f}' for token, value in found[:SHOWN])}")


def _known(feature: str, labels: Mapping[str, str]) -> str:
    return f"; {labels[feature]}" if feature in labels else ""


def show_steering(result: Steering, feature: str, strength: float, where: str, labels: Mapping[str, str]) -> None:
    """Loss and continuation, as it is and steered."""
    click.echo(f"feature {feature} added with strength {strength:.4g} at every token ({where}){_known(feature, labels)}")
    for name, loss, text in (
        ("as it is", result.loss, result.continuation),
        ("steered", result.steered_loss, result.steered_continuation),
    ):
        click.echo(f"\n{name}: loss of the text {loss:.4f} nats a token; it goes on:\n{text.strip()}")
