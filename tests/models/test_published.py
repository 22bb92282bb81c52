"""Published numbers of parameters of the published configurations."""

import pytest
from published import BIG_G, CLIP_H, CLIP_L, KL, SD1, SD2, SDXL

from dreambooth_jax import tree
from dreambooth_jax.models import clip, unet, vae


@pytest.mark.parametrize(
    ("build", "config", "count"),
    [
        (unet.build, SD1, 859_520_964),
        (unet.build, SD2, 865_910_724),
        (unet.build, SDXL, 2_567_463_684),
        (vae.build, KL, 83_653_863),
        (clip.build, CLIP_L, 123_060_480),
        (clip.build, CLIP_H, 340_387_840),
        (clip.build, BIG_G, 694_659_840),
    ],
    ids=["sd1", "sd2", "sdxl", "vae", "clip-l", "clip-h", "big-g"],
)
def test_full_size_networks_have_the_published_number_of_parameters(build, config, count):
    assert tree.count(build(config).abstract) == count
