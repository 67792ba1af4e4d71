"""Train the small language model: Muon on the block matrices, AdamW on the rest, warm-up, constant rate, linear decay.

A step draws its windows from a generator named by the step, so a run that was stopped goes on exactly, and a run stopped
before its decay can be given another length.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pipeline.files import atomic_directory
from pipeline.progress import Progress
from pipeline.seeding import numpy_generator

if TYPE_CHECKING:
    from pipeline.params.schema import DemoParams

CHECKPOINT_STEPS = 250


def build_model(params: DemoParams) -> torch.nn.Module:
    """A GPTNeoXForCausalLM (the Pythia shape) with fresh weights drawn from `params.seed`."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.d_model,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        intermediate_size=params.d_mlp,
        max_position_embeddings=params.context_size,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return GPTNeoXForCausalLM(config)


def rate(step: int, total: int, warmup: int, decay_fraction: float) -> float:
    """Learning-rate factor of a step: linear warm-up, constant, linear decay to zero over the last `decay_fraction`."""
    decay = max(int(total * decay_fraction), 1)
    return min(1.0, (step + 1) / max(warmup, 1), (total - step) / decay)


class _Optimizers:
    def __init__(self, model: torch.nn.Module, params: DemoParams) -> None:
        named = dict(model.named_parameters())
        matrices = [p for n, p in named.items() if ".layers." in n and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        rest = [p for p in named.values() if id(p) not in chosen]
        self.pair: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices,
                lr=params.muon_lr,
                momentum=0.95,
                weight_decay=params.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(rest, lr=params.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.base = [params.muon_lr, params.adamw_lr]

    def step(self, factor: float) -> None:
        for optimizer, base in zip(self.pair, self.base, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{i}/{slot}/{name}": torch.as_tensor(value)
            for i, optimizer in enumerate(self.pair)
            for slot, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        for i, optimizer in enumerate(self.pair):
            state: dict[int, dict[str, Any]] = {}
            for key, value in tensors.items():
                which, slot, name = key.split("/")
                if int(which) == i:
                    state.setdefault(int(slot), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def held_out_loss(model: torch.nn.Module, stream: np.ndarray, context_size: int) -> float:
    """Mean cross entropy in nats over the predicted tokens of consecutive windows of `stream`."""
    n = len(stream) // context_size
    windows = torch.from_numpy(stream[: n * context_size].astype(np.int64)).view(n, context_size)
    total = 0.0
    model.eval()
    with torch.inference_mode():
        for batch in windows.split(64):
            logits = model(batch).logits.float()
            total += float(
                torch.nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
                ).double()
            )
    model.train()
    return total / (n * (context_size - 1))


def _save(path: Path, model: torch.nn.Module, optimizers: _Optimizers, step: int) -> None:
    with atomic_directory(path) as place:
        save_file({n: p.detach().clone() for n, p in model.named_parameters()}, place / "weights.safetensors")
        save_file({n: t.contiguous() for n, t in optimizers.tensors().items()}, place / "optimizer.safetensors")
        (place / "state.json").write_text(json.dumps({"step": step}))


def train_language_model(
    params: DemoParams,
    train: np.ndarray,
    checkpoint: Path,
    *,
    evaluate: Callable[[torch.nn.Module, int], None],
) -> torch.nn.Module:
    """Train on random windows of `train` for `params.total_tokens` tokens; go on from `checkpoint` if it is there.

    Args:
        params: the demo section.
        train: int32 [n], the training stream.
        checkpoint: directory of the resume point, rewritten every 250 steps.
        evaluate: called with the model and the number of done steps at every resume point.
    """
    model = build_model(params)
    optimizers = _Optimizers(model, params)
    total = params.total_tokens // (params.batch_size * params.context_size)
    start = 0
    if (checkpoint / "state.json").exists():
        start = json.loads((checkpoint / "state.json").read_text())["step"]
        model.load_state_dict(load_file(checkpoint / "weights.safetensors"), strict=False)
        optimizers.load(load_file(checkpoint / "optimizer.safetensors"))
    model.train()
    per_step = params.batch_size * params.context_size
    progress = Progress("pretrain", total * per_step, done=start * per_step, every_seconds=15)
    offsets = torch.arange(params.context_size + 1)
    data = torch.from_numpy(train.astype(np.int64))
    for step in range(start, total):
        begin = numpy_generator(params.seed, "windows", step).integers(0, len(train) - params.context_size, params.batch_size)
        window = data[torch.from_numpy(begin)[:, None] + offsets]
        logits = model(window[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(rate(step, total, params.warmup_steps, params.decay_fraction))
        progress.update(per_step, loss=float(loss.detach()))
        if (step + 1) % CHECKPOINT_STEPS == 0:
            _save(checkpoint, model, optimizers, step + 1)
            evaluate(model, step + 1)
    progress.close()
    return model
