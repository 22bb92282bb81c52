"""Attention of an edit without maps, against maps that are made and changed one by one."""

import jax
import numpy as np
import pytest

from dreambooth_jax import sharding
from dreambooth_jax.models import words
from dreambooth_jax.models.words import Swap

PAIRS, HEADS, SIZE, TOKENS, POSITIONS = 2, 2, 4, 5, 6
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def softmaxed(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    scores = np.einsum("lhd,shd->hls", q.astype(np.float64), k) / np.sqrt(SIZE)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def by_maps(q, k, v, swap: Swap, *, every: int, text: int) -> np.ndarray:
    """Every row by a map of its own; the maps of edits as Prompt-to-Prompt changes them."""
    maps = [softmaxed(q[i], k[i]) for i in range(len(q))]
    for p in range(PAIRS):
        source, edit = maps[2 * every * p], maps[2 * every * p + every]
        if text == 0:
            made = source if swap.shared[p] else edit
        else:
            columns = source[..., :text] @ swap.words[p] + edit[..., :text] * swap.own[p]
            image = source if swap.shared[p] else edit
            made = np.concatenate([columns, image[..., text:]], -1)
        maps[2 * every * p + every] = made
    return np.stack([np.einsum("hls,shd->lhd", m, row) for m, row in zip(maps, v, strict=True)])


def projections(every: int, keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = 2 * every * PAIRS
    return (
        normal(rows, POSITIONS, HEADS, SIZE),
        normal(rows, keys, HEADS, SIZE),
        normal(rows, keys, HEADS, SIZE),
    )


# Kind of attention -> its keys and how many of them are the prompt's.
KINDS = {"self": (POSITIONS, 0), "cross": (TOKENS, TOKENS), "hybrid": (TOKENS + POSITIONS, TOKENS)}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", list(KINDS))
def test_changed_values_do_what_changed_maps_do(kind, every):
    keys, text = KINDS[kind]
    swap = Swap(
        np.abs(normal(PAIRS, TOKENS, TOKENS)),
        np.abs(normal(PAIRS, TOKENS)),
        np.array([True, False]),
    )
    q, k, v = projections(every, keys)
    found = words.swapped(swap, every=every)(q, k, v, text=text)
    expected = by_maps(q, k, v, swap, every=every, text=text)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    plain = np.asarray(words.plain(q, k, v, text=text))
    others = [i for i in range(len(q)) if i % (2 * every) != every]
    np.testing.assert_array_equal(np.asarray(found)[others], plain[others])
    assert np.abs(np.asarray(found) - plain).max() > 0.1  # the edits did change


@pytest.mark.parametrize("kind", list(KINDS))
def test_devices_may_share_the_rows_of_a_pair(kind):
    """Eight rows of two pairs on eight devices, against the maps of each row."""
    keys, text = KINDS[kind]
    q, k, v = projections(2, keys)
    swap = Swap(
        np.abs(normal(PAIRS, TOKENS, TOKENS)), np.abs(normal(PAIRS, TOKENS)), np.ones(PAIRS, bool)
    )
    mesh = sharding.make_mesh()
    rows = sharding.rows(mesh)
    assert len(q) == sharding.row_shards(mesh) == 8

    def attended(*given: jax.Array) -> jax.Array:
        return words.swapped(swap, every=2)(*given, text=text)

    program = jax.jit(sharding.traced_for(mesh, attended), out_shardings=rows)
    found = np.asarray(program(*(sharding.put(x, rows) for x in (q, k, v))))
    expected = by_maps(q, k, v, swap, every=2, text=text)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_swap_that_is_off_changes_no_bit(kind):
    keys, text = KINDS[kind]
    q, k, v = projections(2, keys)
    off = Swap(
        np.zeros((PAIRS, TOKENS, TOKENS), np.float32),
        np.ones((PAIRS, TOKENS), np.float32),
        np.zeros(PAIRS, bool),
    )
    found = words.swapped(off, every=2)(q, k, v, text=text)
    np.testing.assert_array_equal(found, words.plain(q, k, v, text=text))


@pytest.mark.parametrize("kind", list(KINDS))
def test_equal_prompts_stay_equal_bit_for_bit(kind):
    keys, text = KINDS[kind]
    q, k, v = (np.repeat(x, 2, 0) for x in projections(1, keys))
    q, k, v = (x[: 2 * PAIRS] for x in (q, k, v))  # rows 0 and 1 are one pair, 2 and 3 another
    same = Swap(
        np.tile(np.eye(TOKENS, dtype=np.float32), (PAIRS, 1, 1)),
        np.zeros((PAIRS, TOKENS), np.float32),
        np.ones(PAIRS, bool),
    )
    found = np.asarray(words.swapped(same, every=1)(q, k, v, text=text))
    np.testing.assert_array_equal(found[0::2], found[1::2])


def test_maps_of_many_positions_are_the_edit_s_own():
    q = normal(2, 1025, 1, SIZE)
    k, v = normal(2, 1025, 1, SIZE), normal(2, 1025, 1, SIZE)
    shared = Swap(np.zeros((1, 1, 1), np.float32), np.ones((1, 1), np.float32), np.ones(1, bool))
    found = words.swapped(shared, every=1)(q, k, v, text=0)
    np.testing.assert_array_equal(found, words.plain(q, k, v, text=0))


def test_steps_from_the_first_on_are_swapped():
    eye = np.tile(np.eye(3, dtype=np.float32), (4, 1, 1))
    rows = {
        "words": eye,
        "own": np.zeros((4, 3), np.float32),
        "cross_steps": np.array([9, 2, 9, 4], np.int32),  # those of sources play no part
        "self_steps": np.array([9, 0, 9, 3], np.int32),
    }
    levels = [900.0, 600.0, 300.0, 1.0, 0.0]  # four steps
    for step, t in enumerate(levels[:-1]):
        swap = words.swap_at(rows, np.float32(t), levels)
        for pair, (cross, among) in enumerate(((2, 0), (4, 3))):
            on = step < cross
            np.testing.assert_array_equal(swap.words[pair], eye[0] * on)
            np.testing.assert_array_equal(swap.own[pair], np.full(3, 1 - on))
            assert bool(swap.shared[pair]) == (step < among)


@pytest.mark.parametrize("kind", ["cross", "hybrid"])
def test_heat_is_the_column_of_the_map(kind):
    keys, text = KINDS[kind]
    q, k, v = projections(1, keys)
    columns = np.zeros((len(q), TOKENS), np.float32)
    columns[:, 2] = 1
    columns[0, 3] = 1  # two tokens of the first
    heats: list[jax.Array] = []
    answer = words.recording(columns, heats)(q, k, v, text=text)
    np.testing.assert_array_equal(answer, words.plain(q, k, v, text=text))
    for row in range(len(q)):
        column = softmaxed(q[row], k[row])[..., :TOKENS] @ columns[row]
        np.testing.assert_allclose(heats[0][row], column.mean(0), atol=1e-6)


def test_layers_without_a_prompt_or_of_many_positions_have_no_heat():
    heats: list[jax.Array] = []
    attend = words.recording(np.ones((1, 2), np.float32), heats)
    attend(normal(1, 4, 1, 4), normal(1, 4, 1, 4), normal(1, 4, 1, 4), text=0)
    attend(normal(1, 1025, 1, 4), normal(1, 2, 1, 4), normal(1, 2, 1, 4), text=2)
    assert heats == []
