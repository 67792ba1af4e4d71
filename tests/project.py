"""A whole small project in a directory: a tiny random language model, local text, parameters, and the stages run in process."""

from __future__ import annotations

import importlib
import os
import shutil
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from click.testing import CliRunner

from pipeline.params.reading import read_mapping
from pipeline.seeding import generator

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = ("tokenize_corpus", "generate_activations", "compute_norm", "initialize", "train", "fold_norm", "evaluate", "analyze")
D_MODEL, N_LAYERS, VOCABULARY, CONTEXT = 16, 2, 300, 16

OVERRIDES: dict[str, Any] = {
    "model.model_name": "model",
    "model.device": "cpu",
    "dataset.dataset_name_or_path": "text.jsonl",
    "dataset.eval_fraction": 0.2,
    "activations.context_size": CONTEXT,
    "activations.model_batch_size": 8,
    "activations.total_tokens": 4096,
    "activations.batch_size": 128,
    "dictionary.hook_point_in": "blocks.0.hook_resid_post",
    "dictionary.expansion_factor": 4,
    "dictionary.top_k": 4,
    "initializer.tokens": 512,
    "trainer.total_training_tokens": 8192,
    "trainer.log_frequency": 8,
    "fold.calibration_tokens": 256,
    "evaluation.batch_contexts": 8,
    "analysis.tokens": 2048,
    "analysis.batch_contexts": 8,
    "tracking.enabled": False,
}


@dataclass(frozen=True)
class Outcome:
    """What a stage ended with."""

    exit_code: int
    stderr: str
    exception: BaseException | None
    stdout: str = ""


@dataclass
class Project:
    """A project directory."""

    path: Path
    params: dict[str, Any] = field(default_factory=dict)

    def set(self, **changes: Any) -> Project:
        """Change parameters; `a__b` stands for the key a.b."""
        for key, value in changes.items():
            put(self.params, key.replace("__", "."), value)
        (self.path / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))
        return self

    def run(self, stage: str, *arguments: str) -> Outcome:
        """Run one stage in this process."""
        command = importlib.import_module(f"stages.{stage}").main
        threads = torch.get_num_threads()
        with chdir(self.path):
            result = CliRunner().invoke(command, list(arguments))
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
        bug = None if isinstance(result.exception, SystemExit) else result.exception
        return Outcome(result.exit_code, result.stderr, bug, result.stdout)

    def run_all(self, until: str = "analyze") -> Project:
        """Run the stages in order up to `until`; each must succeed."""
        for stage in STAGES[: STAGES.index(until) + 1]:
            outcome = self.run(stage)
            if outcome.exception is not None:
                raise outcome.exception
            assert outcome.exit_code == 0, outcome.stderr
        return self

    def copy(self, path: Path) -> Project:
        """A copy that a test may damage."""
        shutil.copytree(self.path, path)
        return Project(path, read_mapping(path / "params.yaml"))

    @property
    def store(self) -> Path:
        """The directory of the one activation store."""
        (found,) = [p for p in (self.path / "data" / "store").iterdir() if p.is_dir()]
        return found


def put(params: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that exists."""
    *sections, last = key.split(".")
    place = params
    for section in sections:
        place = place[section]
    assert last in place, key
    place[last] = value


def make_model(path: Path) -> None:
    """A tiny random GPT-NeoX model with a byte-level tokenizer, in Hugging Face form."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    from pipeline.lm.quiet import quiet

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog"], trainer)
    with quiet():
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=VOCABULARY,
                hidden_size=D_MODEL,
                num_hidden_layers=N_LAYERS,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=CONTEXT,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        draw = generator(0, "tests", "project model")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(base + 0.3 * torch.randn(parameter.shape, generator=draw))
        model.save_pretrained(path)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        ).save_pretrained(path)


def make_project(path: Path) -> Project:
    """A new project: model/, text.jsonl, params.yaml."""
    path.mkdir(parents=True, exist_ok=True)
    make_model(path / "model")
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "mat", "and", "dog", "ran", "far", "home"]
    lines = [" ".join(rng.choice(words, 60)) for _ in range(120)]
    (path / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    project = Project(path, read_mapping(REPOSITORY / "params.yaml"))
    for key, value in OVERRIDES.items():
        put(project.params, key, value)
    os.makedirs(path / "metrics", exist_ok=True)
    return project.set()
