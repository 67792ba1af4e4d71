"""Tokens a second of the generation of activations on the CPU, against the matrix products that it cannot do without.

    python -m benchmarks.generation            # minutes; writes benchmarks/results/generation.md
    python -m benchmarks.generation --small    # seconds; what the tests run

The pipeline's own code writes an activation store of a model of Pythia-160M's shape, with random weights, read at the end of
layer 6, and of the embedded model. Beside it, in turn: the products of these layers with weights, and of queries, keys and
values, each at the shape of a batch and nothing else (the floor); and the plain loop, `model(ids, output_hidden_states=True)`
of transformers, which writes nothing. The store's rows are the plain loop's, bit for bit, which is checked first. One thread
computes and one writes; rates are tokens in a CPU second, since others use the machine too, medians over the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import numpy as np
import torch
import transformers

from benchmarks.quality import machine
from pipeline.activations import generation
from pipeline.activations.codecs.plain import BFLOAT16
from pipeline.activations.fingerprint import GenerationSettings
from pipeline.activations.generation import ModelFacts, generate_store
from pipeline.activations.plan import ContextTokens, plan_rows
from pipeline.activations.reader import open_store
from pipeline.activations.writer import ArrayWriter, StoreWriter
from pipeline.corpus.packing import PackedSplit
from pipeline.corpus.tokens import TokenStore, open_tokens
from pipeline.corpus.tokens_writer import write_tokens
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from pipeline.lm.quiet import quiet
from pipeline.lm.source import DEMO, resolve_model
from pipeline.seeding import generator

RESULTS = Path(__file__).parent / "results" / "generation.md"
ATTENTIONS = ("sdpa", "eager")
FLOOR = "matrix products alone"
PARTS = ("forward", "encode", "permute", "write")


class Case(NamedTuple):
    """What is generated.

    Attributes:
        name: of the case.
        model: GPT-NeoX's configuration by random weights; None: the embedded model.
        layers: so many blocks are run, to the end of the last.
        context: tokens in a context.
        batch: contexts in a pass.
        contexts: in all.
    """

    name: str
    model: dict[str, int] | None
    layers: int
    context: int
    batch: int
    contexts: int

    @property
    def hook_point(self) -> str:
        """The output of the last block that is run."""
        return f"blocks.{self.layers - 1}.hook_resid_post"

    @property
    def tokens(self) -> int:
        """Of one run."""
        return self.context * self.contexts


_PYTHIA = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_TINY = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
CASES = (
    Case("160M", {**_PYTHIA, "vocab_size": 50304, "max_position_embeddings": 2048}, 6, 256, 8, 16),
    Case("demo", None, 3, 128, 64, 1024),
)
SMALL = (Case("small", {**_TINY, "vocab_size": 300, "max_position_embeddings": 64}, 2, 16, 8, 36),)


class Run(NamedTuple):
    """CPU seconds of a run and of its parts, and seconds that it waited for the writing."""

    cpu: float
    parts: dict[str, float]
    waited: float = 0.0


def write_model(case: Case, folder: Path) -> str:
    """The model's name; random weights go to a folder."""
    if case.model is None:
        return DEMO
    config = transformers.GPTNeoXConfig(**case.model, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    with quiet():
        transformers.GPTNeoXForCausalLM(config).save_pretrained(folder / "model")
    return str(folder / "model")


def write_case(case: Case, folder: Path, vocabulary: int) -> TokenStore:
    """Random tokens, none of them ignored."""
    rng = np.random.default_rng(0)
    splits = []
    for contexts in (case.contexts, 1):
        tokens = rng.integers(0, vocabulary, (contexts, case.context), dtype=np.int32)
        splits.append(PackedSplit(tokens, *(np.zeros_like(tokens) for _ in range(3))))
    write_tokens(folder / "tokens.zarr", train=splits[0], eval=splits[1], ignore_token_ids=())
    return open_tokens(folder / "tokens.zarr")


class Generation:
    """Runs of the pipeline's own generation for a case, with one way to compute attention."""

    def __init__(self, case: Case, tokens: TokenStore, name: str, attention: str) -> None:
        self.case, self.tokens = case, tokens
        self.model = load_language_model(name, device="cpu", attention=attention, hook_points=[case.hook_point])
        self.settings = GenerationSettings(case.context, case.batch, case.tokens, ignore_token_ids=(), attention=attention)
        d_model = self.model.d_model
        self.facts = ModelFacts(name, None, self.model.digest, d_model, {case.hook_point: d_model})

    def run(self) -> Run:
        """One store, written and thrown away."""
        with tempfile.TemporaryDirectory() as root, _timed() as seconds:
            began = time.process_time()
            self.write(Path(root))
            return Run(time.process_time() - began, {part: seconds[part] for part in PARTS}, seconds["waited"])

    def write(self, root: Path) -> Path:
        """The store under a root."""
        return generate_store(self.tokens, self.facts, lambda hook_points: self.model, self.settings, root)

    def check(self, plain: Callable[[np.ndarray], torch.Tensor]) -> None:
        """Every row of the store is the plain loop's activation of its token."""
        contexts = ContextTokens(self.tokens.train, ())
        with tempfile.TemporaryDirectory() as root:
            store = open_store(self.write(Path(root)), [self.case.hook_point])
            plan = plan_rows(contexts, self.settings, store.chunk_rows)
            wanted = torch.empty(self.case.contexts, self.case.context, self.model.d_model, dtype=torch.bfloat16)
            for batch in range(plan.n_batches):
                ids = plan.contexts[plan.batch(batch)]
                wanted[torch.from_numpy(ids)] = plain(contexts.take(ids)).to(torch.bfloat16)
            meta = store.read_rows_meta(0, store.n_rows)
            found = store.read(self.case.hook_point, 0, store.n_rows)
            if not torch.equal(found, wanted[meta.context_ids.long(), meta.positions.long()]):
                raise SystemExit(f"benchmark: {self.case.name}: activations are not those of the plain loop")


@contextmanager
def _timed() -> Iterator[Counter[str]]:
    """In the block, CPU seconds of each part of generation, those within another part counted there alone."""
    seconds: Counter[str] = Counter()

    def timed(owner: Any, name: str, part: str, within: str | None = None) -> Any:
        whole = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return whole(*args, **kwargs)
            finally:
                spent = time.thread_time() - began
                seconds[part] += spent
                if within is not None:
                    seconds[within] -= spent

        return mock.patch.object(owner, name, call)

    class Waiting(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
            future = super().submit(*args, **kwargs)
            result = future.result

            def wait() -> Any:
                began = time.perf_counter()
                found = result()
                seconds["waited"] += time.perf_counter() - began
                return found

            future.result = wait  # type: ignore[method-assign, assignment]
            return future

    with ExitStack() as stack:
        stack.enter_context(timed(LanguageModel, "activations", "forward"))
        stack.enter_context(timed(type(BFLOAT16), "encode", "encode"))
        stack.enter_context(timed(StoreWriter, "write_rows", "permute"))
        stack.enter_context(timed(ArrayWriter, "write_chunk", "write", within="permute"))
        stack.enter_context(mock.patch.object(generation, "ThreadPoolExecutor", Waiting))
        yield seconds


def plain_loop(name: str, attention: str, layers: int) -> Callable[[np.ndarray], torch.Tensor]:
    """transformers' own model: tokens [b, T] -> the hidden states after so many layers."""
    directory = resolve_model(name).directory
    load = transformers.AutoModelForCausalLM.from_pretrained
    with quiet():
        model = load(directory, attn_implementation=attention, dtype=torch.float32)

    @torch.no_grad()
    def run(tokens: np.ndarray) -> torch.Tensor:
        ids = torch.from_numpy(tokens.astype(np.int64))
        return model(ids, output_hidden_states=True, use_cache=False).hidden_states[layers]

    return run


def products(case: Case, width: int, heads: int, wide: int) -> Callable[[], float]:
    """A function that does the products of a run, and gives their CPU seconds."""
    g = generator(0, "products")
    rows = case.batch * case.context
    x, hidden = torch.randn(rows, width, generator=g), torch.randn(rows, wide, generator=g)
    weights = [torch.randn(n, m, generator=g) for n, m in ((3 * width, width), (width, width), (wide, width), (width, wide))]
    keys = torch.randn(case.batch * heads, case.context, width // heads, generator=g)
    scores = torch.randn(case.batch * heads, case.context, case.context, generator=g)

    def run() -> float:
        began = time.process_time()
        for _ in range(-(-case.contexts // case.batch) * case.layers):
            for weight in weights:
                torch.nn.functional.linear(x if weight.shape[1] == width else hidden, weight)
            torch.bmm(keys, keys.transpose(1, 2))
            torch.bmm(scores, keys)
        return time.process_time() - began

    return run


def measure(case: Case, rounds: int) -> dict[str, list[Run]]:
    """{what: runs}: generation and plain loop with each attention and the floor, checked, then in turn."""
    found: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        name = write_model(case, folder)
        whole = load_language_model(name, device="cpu")
        _, config = whole._attention(0)
        tokens = write_case(case, folder, whole.vocab_size)
        batches = np.split(tokens.train.read(), range(case.batch, case.contexts, case.batch))
        del whole
        floor = products(case, config.hidden_size, config.num_attention_heads, config.intermediate_size)
        ours = {attention: Generation(case, tokens, name, attention) for attention in ATTENTIONS}
        plain = {attention: plain_loop(name, attention, case.layers) for attention in ATTENTIONS}
        for attention in ATTENTIONS:
            ours[attention].check(plain[attention])
        for number in range(rounds):
            runs: dict[str, Callable[[], Run]] = {FLOOR: lambda: Run(floor(), {})}
            for attention in ATTENTIONS:
                runs[f"generation, {attention}"] = ours[attention].run
                runs[f"plain loop, {attention}"] = lambda loop=plain[attention]: _plain_run(loop, batches)  # type: ignore[misc]
            for what, run in runs.items():
                found.setdefault(what, []).append(run())
                speed = case.tokens / found[what][-1].cpu
                click.echo(f"{case.name} round {number + 1}: {what} {speed:,.0f} tokens/CPU s", err=True)
    return found


def _plain_run(loop: Callable[[np.ndarray], torch.Tensor], batches: list[np.ndarray]) -> Run:
    began = time.process_time()
    for batch in batches:
        loop(batch)
    return Run(time.process_time() - began, {})


def table(case: Case, found: dict[str, list[Run]]) -> list[str]:
    """Lines of markdown of one case."""
    lines = []
    for what, runs in found.items():
        share = statistics.median(floor.cpu / run.cpu for floor, run in zip(found[FLOOR], runs, strict=True))
        speeds = [case.tokens / run.cpu for run in runs]
        spread = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
        words = ""
        if runs[0].parts:
            parts = {part: statistics.median(run.parts[part] / run.cpu for run in runs) for part in PARTS}
            parts["rest"] = 1.0 - sum(parts.values())
            words = ", ".join(f"{part} {share:.1%}" for part, share in parts.items())
            words += f"; waited {max(run.waited for run in runs):.2f} s"
        lines.append(f"| {case.name} | {what} | {spread} | {share:.2f} | {words} |")
    return lines


def report(lines: list[str], rounds: int) -> str:
    """The text of the results file."""
    shapes = [
        f"{case.name}: {case.tokens:,} tokens in contexts of {case.context}, {case.batch} in a pass, to the end of layer "
        f"{case.layers}"
        for case in CASES
    ]
    return "\n".join(
        [
            "# Generation of activations on the CPU",
            "",
            f"`python -m benchmarks.generation` on {machine()}, transformers {transformers.__version__}, float32, one thread "
            f"computes and one writes; {rounds} rounds in turn, medians (least to greatest).",
            f"{'; '.join(shapes)}. Floor: the matrix products of these layers at these shapes and nothing else, scores of all "
            "pairs of a context's tokens among them. Activations are those of the plain loop bit for bit, checked first; the "
            "plain loop writes nothing.",
            "",
            "| case | what | tokens/CPU s | floor's share | CPU seconds by part; time the model waited for writing |",
            "|---|---|---:|---:|---|",
            *lines,
            "",
        ]
    )


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--small", is_flag=True, help="A case of seconds; nothing is written.")
def main(rounds: int, small: bool) -> None:
    """Time the cases and write the table."""
    torch.set_num_threads(1)
    lines: list[str] = []
    for case in SMALL if small else CASES:
        lines += table(case, measure(case, rounds))
    text = report(lines, rounds)
    click.echo(text)
    if not small:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
