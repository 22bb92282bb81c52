"""Fine-tuning of one stage, its program, and its memory and disk space."""
