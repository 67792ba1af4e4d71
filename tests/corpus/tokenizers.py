"""Small fast tokenizers of transformers that differ in what they put before a text by themselves."""

from __future__ import annotations

from typing import Any

BOS, EOS = "<s>", "</s>"
ADDING, PLAIN, WITHOUT = "adds BOS", "has BOS", "has none"


def fast_tokenizer(kind: str) -> Any:
    """One token a character; `kind` is ADDING (a post-processor puts BOS first, as Llama's does), PLAIN or WITHOUT."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = [EOS] if kind == WITHOUT else [BOS, EOS]
    vocabulary = [*specials, *(chr(i) for i in range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if kind == ADDING:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
        )
    stated = {"eos_token": EOS} if kind == WITHOUT else {"bos_token": BOS, "eos_token": EOS}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **stated)
