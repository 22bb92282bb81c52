"""The settings of the denoising loss, with meaning, unit and choices."""

from ml_collections import ConfigDict, config_dict


def for_loss(c: ConfigDict) -> None:
    """Adds the denoising loss."""
    c.loss = ConfigDict()
    c.loss.first_step = 0  # time steps are drawn from this one, of a thousand …
    c.loss.last_step = 999  # … to this one, both included; 999 is pure noise in any model
    c.loss.offset_noise = 0.0  # standard deviation of noise that a whole channel shares; 0 is off
    c.loss.outside_mask = 0.1  # weight of a pixel off the subject, where subject.masks are used
    c.loss.zero_terminal_snr = False  # the schedule is made to end in pure noise (Lin et al. 2023)
    # "fixed" does without, "trained" learns it by the bound of Nichol & Dhariwal 2021
    c.loss.learned_variance = "fixed"  # a model's own output for the variance of a step
    c.loss.min_snr_gamma = 0.0  # γ of min-SNR weighting (Hang et al. 2023 use 5); 0 is off
    # Before the shift: "uniform", "logit_normal", "mode", "cosmap" (Esser et al. 2024, section
    # 3.1); "model" is logit-normal of mean 0 and deviation 1
    c.loss.density = "model"  # density of the noise levels that a flow is trained at
    c.loss.logit_mean = 0.0  # of "logit_normal"; positive draws noisier levels
    c.loss.logit_std = 1.0  # of "logit_normal", its standard deviation
    c.loss.mode_scale = 1.29  # of "mode"; positive prefers levels in the middle
    # s in s·u / (1 + (s - 1)·u), of a level u that was drawn: above 1 trains noisier levels
    c.loss.shift = config_dict.placeholder(float)  # shift of these levels; None: the family's own
