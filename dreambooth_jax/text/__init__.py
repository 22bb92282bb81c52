"""Prompts to token ids, and the rare word that names a subject."""
