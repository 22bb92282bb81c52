"""DreamBooth (Ruiz et al. 2022) in JAX: teach a text-to-image diffusion model a subject from 3-5 photos."""

__version__ = "0.1.0"
