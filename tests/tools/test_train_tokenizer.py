"""The tokenizer's training; SentencePiece and transformers are the judges."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import nouns

sentencepiece = pytest.importorskip("sentencepiece", reason="trains the tokenizer")
import train_tokenizer  # noqa: E402 (needs sentencepiece)


def test_tokenizer_opens_as_t5_and_keeps_words_whole(tmp_path):
    transformers = pytest.importorskip("transformers")
    captions = nouns.typical_captions()[::7]
    words = {word for caption in captions for word in caption.split()}
    rows = "abcdefghijklmnopqrstuvwxyz"
    lines = [*captions, *(f"{a}{b}{c}ing {c}{a}{b}el" for a in rows for b in "aeiou" for c in rows)]
    for name in ("one", "two"):
        train_tokenizer.train(lines, tmp_path / name, words=words, vocab_size=900, rare=150)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "one" / "spiece.model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "one")
    assert len(tokenizer) == 900 and processor.vocab_size() == 800
    assert tokenizer.model_max_length == 77
    specials = ("<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_99>")
    assert tokenizer.convert_tokens_to_ids(list(specials)) == [0, 1, 2, 899, 800]
    for text in [*captions[:50], "A PHOTO of a qux bird, ＡＢＣ café!", "a\ttab  and  spaces"]:
        assert tokenizer(text).input_ids == [*processor.encode(text), 1]
    for caption in captions:
        assert tokenizer.tokenize(caption) == [f"▁{word}" for word in caption.split()]


def test_tokenizer_says_when_the_vocabulary_is_too_small(tmp_path):
    with pytest.raises(ValueError, match="write vocab_size=30"):
        train_tokenizer.train(["a fox"], tmp_path, words=["a", "fox"], vocab_size=150)
