"""Evaluation of a finished run: encoders that were not trained here, and the measures."""
