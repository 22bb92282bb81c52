import numpy as np
import pytest

from dreambooth_jax.data.captions import Captions

PROMPTS = ("", "a red ball", "a blue cube")


def render(index: int) -> tuple[np.ndarray, str]:
    """A picture of noise; captions take turns."""
    picture = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
    return picture, PROMPTS[1 + index % 2]


def captions(**changed) -> Captions:
    return Captions(
        **({"render": render, "prompts": PROMPTS, "batch_size": 4, "seed": 0} | changed)
    )


def test_pictures_are_fresh_in_every_batch_and_in_the_range_of_the_network():
    asked = []

    def remember(index):
        asked.append(index)
        return render(index)

    source = captions(render=remember)
    batches = [source.batch(step) for step in (0, 1, 2)]
    assert asked == list(range(12))
    for step, batch in enumerate(batches):
        assert (batch["mean"].shape, batch["mean"].dtype) == ((4, 8, 8, 3), np.float32)
        for row, picture in enumerate(batch["mean"]):
            expected = render(4 * step + row)[0] / 127.5 - 1  # 0 → -1, 255 → 1
            np.testing.assert_allclose(picture, expected, atol=1e-6)
        assert batch["is_prior"].tolist() == [False] * 4


def test_rows_point_at_their_caption_and_dropped_ones_at_the_empty_one():
    kept = captions(drop=0.0).batch(3)["prompt"]
    assert kept.dtype == np.int32
    assert [PROMPTS[row] for row in kept] == [render(12 + i)[1] for i in range(4)]
    assert captions(drop=1.0).batch(3)["prompt"].tolist() == [0] * 4


def test_the_share_of_dropped_captions():
    picture = np.zeros((1, 1, 3), np.uint8)
    source = captions(render=lambda index: (picture, PROMPTS[1]), batch_size=500, drop=0.1)
    rows = np.concatenate([source.batch(step)["prompt"] for step in range(8)])
    assert set(rows) == {0, 1}
    share, spread = (rows == 0).mean(), np.sqrt(0.1 * 0.9 / len(rows))
    assert abs(share - 0.1) < 4 * spread


def test_low_res_pictures_are_means_over_boxes():
    batch = captions(low_size=2).batch(1)
    assert batch["low_res"].shape == (4, 2, 2, 3)
    for row in range(4):
        for y, x in np.ndindex(2, 2):
            box = batch["mean"][row, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            np.testing.assert_allclose(batch["low_res"][row, y, x], box.mean((0, 1)), atol=1e-6)
    assert batch["low_res"].dtype == np.float32
    assert "low_res" not in captions().batch(1)


def test_a_batch_is_a_function_of_seed_and_step():
    first, again = captions(drop=0.5), captions(drop=0.5)
    there = [first.batch(step) for step in range(8)]
    back = [again.batch(step) for step in reversed(range(8))][::-1]
    for one, other in zip(there, back, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    dropped = [batch["prompt"].tolist() for batch in there]
    assert dropped != [
        captions(drop=0.5, seed=1).batch(step)["prompt"].tolist() for step in range(8)
    ]


@pytest.mark.parametrize("prompts", [(), ("a red ball",), ("a red ball", "")])
def test_the_first_prompt_must_be_the_empty_one(prompts):
    with pytest.raises(ValueError, match='prompts must begin with ""'):
        captions(prompts=prompts)
