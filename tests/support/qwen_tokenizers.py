"""Tokenizers of Qwen's kind without downloads, with the marks of a chat."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
# The published template's meaning for one message of a user, in three lines.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def make(folder: Path) -> Path:
    """Writes one whose tokens are bytes to `folder`; its vocabulary has 261 tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    return _written(folder, {letter: i for i, letter in enumerate(alphabet)}, [])


def trained(folder: Path, texts: Sequence[Path], *, size: int) -> Path:
    """Writes one whose tokens are learned from files, a word's with the space before it."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train([str(file) for file in texts], trainer)
    model = json.loads(made.to_str())["model"]
    return _written(folder, model["vocab"], [tuple(pair) for pair in model["merges"]])


def _written(folder: Path, vocab: dict[str, int], merges: list[Any]) -> Path:
    from transformers import Qwen2Tokenizer

    made = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        pad_token=MARKS[0],
        eos_token=MARKS[2],
        unk_token=MARKS[0],
    )
    made.add_tokens(list(MARKS), special_tokens=True)
    made.chat_template = TEMPLATE
    made.save_pretrained(str(folder))
    return folder
