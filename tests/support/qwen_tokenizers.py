"""A tokenizer of Qwen's kind without downloads: one token per byte, and the marks of a chat."""

from pathlib import Path

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
# The published template's meaning for one message of a user, in three lines.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def make(folder: Path) -> Path:
    """Writes the tokenizer to `folder`; its vocabulary has 261 tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    alphabet = sorted(ByteLevel.alphabet())
    made = Qwen2Tokenizer(
        vocab={letter: i for i, letter in enumerate(alphabet)},
        merges=[],
        pad_token=MARKS[0],
        eos_token=MARKS[2],
        unk_token=MARKS[0],
    )
    made.add_tokens(list(MARKS), special_tokens=True)
    made.chat_template = TEMPLATE
    made.save_pretrained(str(folder))
    return folder
