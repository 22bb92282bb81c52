"""Frames of a chat around prompts, as Qwen3 reads them: one user's message, then an answer begins.

Written out here: a tokenizer's own template is a program, and programs of model files are not run.
"""

from dreambooth_jax.text.tokenizer import Form

MAX_LENGTH = 512  # tokens of prompt and frame
_BEFORE = "<|im_start|>user\n"
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
# Z-Image: the answer is open, so that it may begin with a thought; padding is cut off later.
QWEN3_THINKING = Form(cased=True, before=_BEFORE, after=_AFTER, multiple=32)
# FLUX.2 klein: the answer begins with an empty thought, which keeps Qwen3 from another one.
QWEN3_PLAIN = Form(cased=True, before=_BEFORE, after=f"{_AFTER}<think>\n\n</think>\n\n")
