"""A chat model on this machine: a causal language model of transformers, decoded greedily."""

from __future__ import annotations

import threading
from typing import Any

from pipeline.foreign import reading
from pipeline.interpretation.chat import ChatError, Message


class LocalModel:
    """A causal language model and its tokenizer; weights are read at the first request.

    Messages go through the tokenizer's chat template; without one they are written as `role: text` paragraphs.

    Args:
        path_or_id: a directory written by save_pretrained, or a hub id.
        max_tokens: most tokens of an answer.
    """

    def __init__(self, path_or_id: str, *, max_tokens: int = 1024) -> None:
        self.name, self.max_tokens = path_or_id, max_tokens
        self._loaded: tuple[Any, Any] | None = None
        self._lock = threading.Lock()

    def complete(self, messages: list[Message]) -> str:
        """The answer to messages.

        Raises:
            ChatError: the model cannot be loaded, or the messages are longer than its context.
        """
        import torch

        from pipeline.lm.quiet import quiet

        with self._lock, quiet(), torch.inference_mode():
            model, tokenizer = self._load()
            ids, mask = self._encode(messages, model, tokenizer)
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self._room(ids.shape[1], model),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
            return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            fault = f"--local {self.name}: no language model with a tokenizer can be loaded"
            with reading(fault, "give a directory written by save_pretrained, or a hub id while online", ChatError):
                tokenizer = AutoTokenizer.from_pretrained(self.name, trust_remote_code=False)
                model: Any = AutoModelForCausalLM.from_pretrained(
                    self.name, dtype="auto", use_safetensors=True, trust_remote_code=False
                )
            model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval().requires_grad_(False)
            self._loaded = model, tokenizer
        return self._loaded

    def _encode(self, messages: list[Message], model: Any, tokenizer: Any) -> tuple[Any, Any]:
        if tokenizer.chat_template:
            text = self._templated(messages, tokenizer)
        else:
            text = "".join(f"{message['role']}: {message['content']}\n\n" for message in messages) + "assistant:"
        encoded = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        return encoded["input_ids"].to(model.device), encoded["attention_mask"].to(model.device)

    def _templated(self, messages: list[Message], tokenizer: Any) -> str:
        """The messages in the tokenizer's chat template; where it knows no system role, as part of the first user message."""
        from jinja2.exceptions import TemplateError

        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        rest = [dict(message) for message in messages if message["role"] != "system"]
        rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"

        def templated(form: list[Message]) -> str:
            return str(tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=True))

        try:
            return templated(messages)
        except TemplateError:
            with reading(f"--local {self.name}: its chat template fails", "correct it, or give another model", ChatError):
                return templated(rest)

    def _room(self, used: int, model: Any) -> int:
        """Tokens that the answer may have after a prompt of `used` tokens."""
        longest = getattr(model.config, "max_position_embeddings", None) or used + self.max_tokens
        if used >= longest:
            raise ChatError(
                f"--local {self.name}: a prompt of {used:,} tokens, its contexts hold {longest:,}; "
                "give a model with longer contexts"
            )
        return min(self.max_tokens, longest - used)
