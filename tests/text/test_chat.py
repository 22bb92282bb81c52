"""Chat frames against transformers' templates; capitals; lengths."""

import json

import numpy as np
import pytest
import qwen_tokenizers

from dreambooth_jax.text import chat, tokenizer

FORMS = {True: chat.QWEN3_THINKING, False: chat.QWEN3_PLAIN}
PROMPTS = ["a photo of a Zib dog", "", "Ünïcode, 猫\nand two lines ", "<think> aloud"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return qwen_tokenizers.make(tmp_path_factory.mktemp("tokenizer"))


def loaded(folder, thinking, length=96):
    return tokenizer.load(folder, max_length=length, form=FORMS[thinking])


@pytest.mark.parametrize("thinking", FORMS)
def test_frames_are_those_of_the_chat_template(folder, thinking):
    pytest.importorskip("jinja2")
    ours = loaded(folder, thinking)
    encoded = ours.encode(PROMPTS)
    for prompt, ids, mask in zip(PROMPTS, encoded["ids"], encoded["mask"], strict=True):
        text = ours.hf.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        expected = ours.hf(text)["input_ids"]
        np.testing.assert_array_equal(ids[mask > 0], expected)
        assert (ids[len(expected) :] == ours.hf.pad_token_id).all()
        assert mask[: len(expected)].all() and not mask[len(expected) :].any()


def test_padding_ends_where_z_image_fills_captions_up(folder):
    ours = loaded(folder, True, 512)
    frame = int(ours.encode([""])["mask"].sum())
    for letters, length in ((0, 32), (64 - frame, 64), (65 - frame, 96)):
        assert ours.encode(["", "x" * letters])["ids"].shape == (2, length)
    assert ours.encode([])["ids"].shape == (0, 512)


@pytest.mark.parametrize(("thinking", "marks"), [(True, 3), (False, 5)])
def test_marks_are_tokens_of_their_own(folder, thinking, marks):
    ours = loaded(folder, thinking)
    ids = ours.encode([""])["ids"][0]
    special = set(ours.hf.convert_tokens_to_ids(list(qwen_tokenizers.MARKS[1:])))
    assert sum(i in special for i in ids) == marks


def test_capitals_survive_and_other_forms_still_lower_them(folder):
    kept, lowered = loaded(folder, True), tokenizer.load(folder)
    assert kept.ids("A Zib") != kept.ids("a zib")
    assert lowered.ids("A Zib") == lowered.ids("a zib") == kept.ids("a zib")
    assert tokenizer.load(folder, form=tokenizer.CASED).decode(kept.ids("A Zib")) == "A Zib"


def test_a_subject_s_word_is_read_as_it_is_spelled_in_whatever_case_it_stands(folder):
    """Captions with "Zib" train the word that {subject} draws; other capitals survive."""
    ours = loaded(folder, False)
    found, expected = (
        ours.encode([text], keep=("zib", "kep"))["ids"]
        for text in (
            "a Zib bird by KEP in Paris, not Zibby",
            "a zib bird by kep in Paris, not Zibby",
        )
    )
    np.testing.assert_array_equal(found, expected)
    assert "Zibby" in ours.hf.decode(found[0]) and "Paris" in ours.hf.decode(found[0])
    with pytest.raises(ValueError, match="tokens long"):
        ours.check("very " * 80 + "Zib bird", keep="zib")


def test_a_prompt_without_room_for_its_frame_is_refused(folder):
    ours = loaded(folder, True, chat.MAX_LENGTH)
    frame = int(ours.encode([""])["mask"].sum())
    fits = ours.encode(["x" * (512 - frame)])
    assert fits["ids"].shape == (1, 512) and fits["mask"].all()
    with pytest.raises(ValueError, match=r"is 513 tokens long.*512 are read. Shorten the prompt"):
        ours.encode(["x" * (513 - frame)])


def test_prompts_are_padded_on_the_right_whatever_the_file_says(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
    ours, same = loaded(tmp_path, False), loaded(folder, False)
    np.testing.assert_array_equal(ours.encode(["a dog"])["ids"], same.encode(["a dog"])["ids"])


def test_a_new_word_is_one_token_in_a_frame(folder):
    ours = loaded(folder, True).with_word("<zib>", count=2)
    ids = list(ours.encode(["a <zib> dog"])["ids"][0])
    start = ids.index(ours.new_ids[0])
    assert tuple(ids[start : start + 2]) == ours.new_ids == (261, 262)


def test_spaces_begin_words(folder):
    ours = loaded(folder, True)
    space, letter = ours.ids(" a")
    assert ours.is_word_start(space) and not ours.is_word_start(letter)
