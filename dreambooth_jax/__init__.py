"""DreamBooth (Ruiz et al. 2022) in JAX: teaches a text-to-image model a subject from 3-5 photos."""

__version__ = "0.1.0"
