"""The mathematics of diffusion: arrays in, arrays out. Notation: `xt = alpha_t * x0 + sigma_t * noise`."""
