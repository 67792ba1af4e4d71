"""Texts of single tokens: with a decoder that strips spaces at the start, as Llama's, and with bytes that are no text alone."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.lm.token_texts import TokenTexts


def llama_like() -> PreTrainedTokenizerFast:
    words = ["<unk>", "\u2581the", "\u2581cat", "s", "\u2581a", "a", "\u2581", "<0x0A>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_spaces_are_kept() -> None:
    tokenizer = llama_like()
    text = TokenTexts(tokenizer)
    assert tokenizer.decode([2]) == "cat"
    assert [text(i) for i in (1, 2, 3, 4, 5, 7)] == [" the", " cat", "s", " a", "a", "\n"]
    assert "".join(text(i) for i in (1, 2, 3)) == " the cats"


def test_byte_level_tokens_are_as_they_decode(finished_project) -> None:
    from pipeline.lm.loading import load_language_model

    model = load_language_model(str(finished_project.path / "model"), device="cpu")
    for token in range(model.vocab_size):
        assert model.token_text(token) == model.tokenizer.decode([token])
