"""The readers that are fuzzed, each with whole documents made by code, and how they are changed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.analysis.feature_columns import CONTEXTS, FEATURES
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.contracts.sealing import DIGEST, sealed
from pipeline.corpus.chat import ChatTemplate
from pipeline.corpus.folder import text_files
from pipeline.corpus.local import documents_of_files, local_documents
from pipeline.corpus.pieces import Column, Skipped
from pipeline.dashboard.chunks import Table, chunk, packed
from pipeline.dashboard.overview import WANTED
from pipeline.dashboard.training_rows import training_rows
from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.store import load_dictionary, read_config
from pipeline.evaluation.compared import compared
from pipeline.evaluation.headline import headline
from pipeline.evaluation.massive import massive_line
from pipeline.interpretation.examples import split_examples
from pipeline.lm.source import resolve_model
from pipeline.metric_files import read_history, read_metrics
from pipeline.norms.hook_norm import read_norms, sealed_norms
from pipeline.params.lm_saes.overlay import settings_overlay
from pipeline.params.loader import load_params
from pipeline.params.preset_flags import flags_of
from pipeline.params.reading import read_mapping
from pipeline.plots.training import training_charts
from pipeline.plots.training_report import describe
from pipeline.suites.labelled_texts import chosen_texts, of_file
from pipeline.suites.saebench_results import read_result
from pipeline.tracking.opening import history_rows
from pipeline.tracking.run_file import read_ids
from tests.corpus.chats import HEADERS, chat_tokenizer, conversations
from tests.dashboard import synthetic
from tests.fuzz.hunting import Target
from tests.fuzz.interchange import interchange
from tests.fuzz.mutations import changed, corrupted, written
from tests.lm.gguf_files import put
from tests.params.lm_saes_settings import KINDS
from tests.params.lm_saes_settings import toml as settings_toml
from tests.project import REPOSITORY

HOOKS = [f"blocks.{layer}.hook_resid_post" for layer in range(2)]
LN2 = [f"blocks.{layer}.ln2.hook_out" for layer in range(2)]
MLPS = [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
DICTIONARIES: tuple[dict[str, Any], ...] = (
    {"kind": "sae", "act_fn": "topk", "top_k": 2, "hook_point_in": HOOKS[0]},
    {"kind": "transcoder", "act_fn": "jumprelu", "hook_point_in": LN2[0], "hook_point_out": MLPS[1]},
    {"kind": "clt", "act_fn": "relu", "hook_points_in": LN2, "hook_points_out": MLPS},
    {"kind": "crosscoder", "act_fn": "relu", "hook_points_in": HOOKS},
    {
        "kind": "lorsa", "act_fn": "topk", "top_k": 2, "hook_point_in": "a", "hook_point_out": "b", "n_qk_heads": 2,
        "d_qk_head": 4, "n_ctx": 8, "rotary_dim": 4,
    },
)  # fmt: skip
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
Files = tuple[tuple[str, bytes], ...]  # a case: the files of a folder


def put_files(folder: Path, files: Files) -> None:
    for name, content in files:
        (folder / name).write_bytes(content)


def read_from(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def one_file(name: str, content: bytes) -> Files:
    return ((name, content),)


def toml(values: Mapping[str, Any], place: str = "") -> str:
    """Nested mappings as TOML, which has no null."""
    plain = {key: value for key, value in values.items() if value is not None and not isinstance(value, dict)}
    lines = [f"[{place}]"] if place else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    return "\n".join([*lines, *(toml(value, f"{place}.{key}" if place else key) for key, value in nested.items())])


def params() -> Target:
    whole = read_mapping(REPOSITORY / "params.yaml")
    text = {"params.yaml": partial(yaml.safe_dump, sort_keys=False), "params.json": json.dumps, "params.toml": toml}

    def case(draw: Random) -> Files:
        name = draw.choice(list(text))
        return one_file(name, written(draw, whole, text[name]))

    def read(folder: Path) -> None:
        for path in folder.iterdir():
            load_params(path)

    kept = tuple(one_file(name, to_text(whole).encode()) for name, to_text in text.items())
    return Target("params", case, put_files, read, kept)


def settings(seeds: Path) -> Target:
    """Settings of the reference, laid over the parameter file."""
    over = seeds / "params.json"
    over.write_text(json.dumps(read_mapping(REPOSITORY / "params.yaml")))  # JSON is read sooner than YAML
    text = {
        "settings.yaml": partial(yaml.safe_dump, sort_keys=False),
        "settings.json": json.dumps,
        "settings.toml": settings_toml,
    }

    def case(draw: Random) -> Files:
        name = draw.choice(list(text))
        return one_file(name, written(draw, draw.choice(list(KINDS.values())), text[name]))

    def read(folder: Path) -> None:
        for path in folder.iterdir():
            values, _ = settings_overlay(path, over)
            flags_of(values, over, str(path))

    kept = tuple(one_file(name, to_text(whole).encode()) for name, to_text in text.items() for whole in KINDS.values())
    return Target("settings", case, put_files, read, kept)


def resealed(config: Any, weights: bytes) -> bytes:
    """config.json that says what these weights are, and has the digest of what it says; else as it is."""
    if isinstance(config, dict) and isinstance(config.get("weights"), dict):
        config["weights"] |= {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    try:
        values = {key: value for key, value in config.items() if key != DIGEST} if isinstance(config, dict) else config
        return json.dumps(sealed(values) if isinstance(values, dict) else values).encode()
    except (TypeError, ValueError):
        return b"{}"


def header_changed(draw: Random, weights: bytes) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(weights[:8], "little")
    text = json.dumps(changed(draw, json.loads(weights[8 : 8 + size]))).encode()
    return len(text).to_bytes(8, "little") + text + weights[8 + size :]


def dictionary(seeds: Path) -> Target:
    whole = []
    for fields in DICTIONARIES:
        build_dictionary({**fields, "d_in": 4, "d_sae": 8}).save(seeds / fields["kind"])
        whole.append(tuple(read_from(seeds / fields["kind"]).items()))

    def case(draw: Random) -> Files:
        files = dict(draw.choice(whole))
        config, weights = files["config.json"], files["weights.safetensors"]
        what = draw.choice(("config", "config", "config", "bytes", "header", "weights"))
        if what == "bytes":
            return ("config.json", corrupted(draw, config)), ("weights.safetensors", weights)
        if what != "config":
            weights = (header_changed if what == "header" else corrupted)(draw, weights)
        values = changed(draw, json.loads(config)) if what == "config" else json.loads(config)
        return ("config.json", resealed(values, weights)), ("weights.safetensors", weights)

    def read(folder: Path) -> None:
        config = read_config(folder)
        loaded = load_dictionary(folder)
        describe(config.to_dict(), layers=loaded.config.layers)
        training_rows(config.to_dict())
        massive_line({"evaluated_tokens": 10.0, "massive_tokens": 1.0}, config.norms)

    return Target("dictionary", case, put_files, read, tuple(whole))


def table_changed(draw: Random, content: bytes) -> bytes:
    """A Parquet file in whose metadata, or in one of its rows, something is another; changes that no column can hold change nothing."""
    table = pq.read_table(pa.BufferReader(content))
    at = min(3, len(table) - 1)
    row = {"row": table.slice(at, 1).to_pylist(), "about": json.loads((table.schema.metadata or {}).get(b"scopeline", b"{}"))}

    document = changed(draw, row, most=2)
    try:
        schema = table.schema.with_metadata({b"scopeline": json.dumps(document["about"]).encode()})
        other = pa.Table.from_pylist(document["row"], schema=schema)
        parts = [part.replace_schema_metadata(schema.metadata) for part in (table.slice(0, at), other, table.slice(at + 1))]
        table = pa.concat_tables(parts)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, pa.ArrowException):
        pass
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def features(seeds: Path) -> Target:
    synthetic.make_store(seeds / "features", 12, contexts=1, hooks=2, sources=True)
    whole = read_from(seeds / "features")

    def case(draw: Random) -> Files:
        name, change = draw.choice((FEATURES, CONTEXTS)), draw.choice((table_changed, table_changed, corrupted))
        return tuple({**whole, name: change(draw, whole[name])}.items())

    def read(folder: Path) -> None:
        store, table = FeatureStore(folder), Table()
        for rows, contexts in store.blocks():
            packed(chunk(rows, contexts))
            for row in rows:
                table.add(row, contexts[row["feature"]])
                split_examples(contexts[row["feature"]], 2, 2, 2)
        packed(table.packed())
        store.contexts(1)

    return Target("features", case, put_files, read, (tuple(whole.items()),))


def corpus() -> Target:
    records = [{"text": f"document {number} \u00e9 " + "word " * number, "n": number} for number in range(12)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink, compression="zstd", row_group_size=5)
    parquet = sink.getvalue().to_pybytes()
    texts: dict[str, bytes] = {"a.txt": "\n\n".join(record["text"] for record in records).encode(), "a.jsonl": lines}
    texts["a.json"] = json.dumps(records).encode()
    whole = [one_file(f"{name}{suffix}", pack(content)) for name, content in texts.items() for suffix, pack in PACKED.items()]
    whole.append(one_file("a.parquet", parquet))
    changes: dict[str, Callable[[Random], bytes]] = {
        "a.json": lambda draw: written(draw, records, json.dumps),
        "a.jsonl": lambda draw: written(draw, records, lambda rows: "\n".join(map(json.dumps, rows))),
        "a.parquet": lambda draw: table_changed(draw, parquet),
    }

    def case(draw: Random) -> Files:
        if draw.random() < 0.5:
            name = draw.choice(list(changes))
            return one_file(name, changes[name](draw))
        ((name, content),) = draw.choice(whole)
        return one_file(name, corrupted(draw, content))

    def read(folder: Path) -> None:
        for path in folder.iterdir():
            for _ in local_documents(path, "text"):
                pass

    return Target("corpus", case, put_files, read, tuple(whole))


def gguf_files(seeds: Path) -> Target:
    about = {"context_length": 16, "block_count": 1, "embedding_length": 32, "rope.freq_base": 1e4, "vocab_size": 4}
    metadata = {f"llama.{key}": value for key, value in about.items()} | {
        "general.name": "tiny", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "c", "d"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    import gguf

    writer = gguf.GGUFWriter(str(seeds / "a.gguf"), "llama")
    for key, value in metadata.items():
        put(writer, key, value)
    for name in ("token_embd.weight", "output_norm.weight"):
        writer.add_tensor(name, np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = (seeds / "a.gguf").read_bytes()

    def case(draw: Random) -> Files:
        # What is changed lies before the weights, where there is something to read.
        head = whole.index(b"output_norm.weight") + 64
        return one_file("a.gguf", corrupted(draw, whole[:head]) + whole[head:])

    def read(folder: Path) -> None:
        source = resolve_model(folder / "a.gguf")
        assert source.d_model * source.n_layers * source.vocab_size > 0
        assert source.has_tokenizer in (True, False)

    return Target("gguf", case, put_files, read, (one_file("a.gguf", whole),))


def chats() -> Target:
    records = [{"turns": chat} for chat in conversations(12, system=True)]
    template = ChatTemplate(chat_tokenizer(HEADERS), "tiny")
    column = Column("turns", template, assistant_only=True)

    def lines(rows: Any) -> str:
        return "\n".join(map(json.dumps, rows))

    def case(draw: Random) -> Files:
        return one_file("a.jsonl", written(draw, records, lines))

    def read(folder: Path) -> None:
        for path in folder.iterdir():
            for document in documents_of_files(text_files(path, "train", None), column, 0, Skipped()):
                assert all(0 <= start <= end <= len(document.text) for start, end in document.counted or ())

    return Target("chats", case, put_files, read, (one_file("a.jsonl", lines(records).encode()),))


def metrics() -> Target:
    figures = {name: 0.5 + number for number, name in enumerate(WANTED)} | {
        "massive_tokens": 1.0,
        "fvu_low": 0.1,
        "fvu_high": 0.9,
    }
    history = [
        {"step": step, "tokens": 64 * step, "loss": 1.0 / step, "l0": 4.0, "explained_variance": 0.5} for step in (1, 2, 3)
    ]
    norm = {"mean_norm": 2.0, "mean_square": 5.0, "d": 4, "median_norm": 2.0, "max_norm_factor": 8.0, "n_tokens": 10}
    norms = sealed_norms({hook: {**norm, "norm_quantiles": {"0.5": 2.0}} for hook in HOOKS}, "", {})
    names = ("evaluation.json", "history.jsonl", "norms.json", "run.json")
    runs = {"run_id": "0" * 32, "members": {"a": "1" * 32}}
    documents = (figures, history, norms, {**runs, "wandb": {**runs, "run_id": "2" * 16}})

    def sealed_again(values: Any) -> str:
        return json.dumps(sealed({k: v for k, v in values.items() if k != DIGEST}))

    def in_lines(rows: Any) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    text = {names[0]: json.dumps, names[1]: in_lines, names[2]: sealed_again, names[3]: json.dumps}

    def case(draw: Random) -> Files:
        name, document = draw.choice(list(zip(names, documents, strict=True)))
        return one_file(name, written(draw, document, text[name]))

    def read(folder: Path) -> None:
        if (folder / "evaluation.json").exists():
            found = read_metrics(folder / "evaluation.json", "the evaluation", "run it", WANTED, member="")
            compared(found)
            headline(found | {"dead_fraction": 0.0})
            massive_line(found, None)
        if (folder / "history.jsonl").exists():
            list(history_rows(folder / "history.jsonl", 2))
            training_charts(read_history(folder / "history.jsonl", "run it"))
        if (folder / "norms.json").exists():
            read_norms(folder / "norms.json")[1].check(folder / "norms.json", "norm", {"activations": "0"})
        for member in ("", "a"):
            read_ids(folder / "run.json", member)

    whole = tuple(one_file(name, text[name](document).encode()) for name, document in zip(names, documents, strict=True))
    return Target("metrics", case, put_files, read, whole)


def suites() -> Target:
    """Labelled texts, and the results that SAEBench leaves."""
    texts = [{"text": f"text {i}", "label": i % 2} for i in range(4)]
    result = {"eval_result_metrics": {"sparsity": {"l0": 24.0, "l1": 30.5}, "kl": {"kl_div_score": -1}}}
    names = ("a.jsonl", "core_eval_results.json")

    def lines(rows: Any) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else json.dumps(rows)

    text = dict(zip(names, (lines, json.dumps), strict=True))
    documents = dict(zip(names, (texts, result), strict=True))

    def case(draw: Random) -> Files:
        name = draw.choice(names)
        return one_file(name, written(draw, documents[name], text[name]))

    def read(folder: Path) -> None:
        if (folder / names[0]).exists():
            chosen_texts(of_file(folder / names[0]), "texts", per_label=2, least=1)
        else:
            (folder / "core").mkdir()
            (folder / names[1]).rename(folder / "core" / names[1])
            read_result(folder, "core")

    whole = tuple(one_file(name, text[name](documents[name]).encode()) for name in names)
    return Target("suites", case, put_files, read, whole)


def targets(seeds: Path) -> tuple[Target, ...]:
    """Every target; whole documents that are directories are made in `seeds`."""
    own = params(), settings(seeds), dictionary(seeds), features(seeds), corpus(), gguf_files(seeds), chats(), metrics()
    return *own, suites(), interchange(seeds)
