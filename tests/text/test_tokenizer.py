"""Tests of the tokenizer; SentencePiece, transformers and diffusers' IF pipeline are the judges."""

import html
import html.parser
import io
import json
import logging
import os
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_jax.text import tokenizer as text

PROMPTS = [
    "a zib bird",
    "  A Photo of a ZIB bird,\twearing a hat!\n",
    "",
    "é Ünïcode ½ 日本 — “quoted” 🦜",
    "one two three " * 60,
]


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "dreambooth_jax" / "assets" / "base" / "tokenizer"


@pytest.fixture(scope="module")
def t5_folder(shared_data):
    return shared_data / "tokenizers" / "t5"


@pytest.fixture(scope="module")
def embedded(folder):
    return text.load(folder)


@pytest.fixture(scope="module")
def t5(t5_folder):
    return text.load(t5_folder)


@pytest.fixture(scope="module")
def pieces(folder):
    sentencepiece = pytest.importorskip("sentencepiece", reason="judges the ids")
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


@pytest.fixture(scope="module")
def pipeline():
    """diffusers' IFPipeline: the class, for its functions that need no weights."""
    pytest.importorskip("diffusers", reason="judges prompts")
    from diffusers.pipelines.deepfloyd_if import pipeline_if

    return pipeline_if


@pytest.mark.parametrize("name", ["folder", "t5_folder"])
def test_ids_and_mask_are_those_of_the_if_pipeline(name, request, pipeline):
    folder = request.getfixturevalue(name)
    prompts = pipeline.IFPipeline._text_preprocessing(None, PROMPTS)
    assert [text.normalize(prompt) for prompt in PROMPTS] == prompts
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(
        prompts,
        padding="max_length",
        max_length=77,
        truncation=True,
        return_attention_mask=True,
        add_special_tokens=True,
        return_tensors="np",
    )
    ours = text.load(folder).encode(PROMPTS)
    assert list(ours) == ["ids", "mask"]
    np.testing.assert_array_equal(ours["ids"], theirs["input_ids"])
    np.testing.assert_array_equal(ours["mask"], theirs["attention_mask"])
    assert {(a.dtype.name, a.shape) for a in ours.values()} == {("int32", (len(PROMPTS), 77))}


def test_ids_are_sentencepieces_then_the_end_mark_then_padding(embedded, pieces):
    found = embedded.encode(PROMPTS)
    for prompt, ids, mask in zip(PROMPTS, found["ids"], found["mask"], strict=True):
        wanted = [*pieces.encode(prompt.strip().lower())[:76], pieces.eos_id()]
        assert ids.tolist() == wanted + [pieces.pad_id()] * (77 - len(wanted))
        assert mask.tolist() == [1] * len(wanted) + [0] * (77 - len(wanted))


def test_case_and_outer_white_space_change_nothing(t5):
    plain, dressed = t5.encode(["a photo of a sks dog", "\n A PHOTO of a SKS Dog  "])["ids"]
    np.testing.assert_array_equal(plain, dressed)


def test_t5_is_as_published(t5):
    # Raffel et al. 2020: 32,000 pieces and 100 sentinels; pad 0, end 1, unknown 2, no begin.
    assert t5.vocab_size == 32_100
    assert t5.special_ids == {0, 1, 2, *range(32_000, 32_100)}
    assert t5.ids("a") == (3, 9)
    assert t5.pieces("sks") == ("▁", "s", "k", "s")
    assert t5.decode(t5.ids("a zib dog")) == "a zib dog"
    assert t5.decode([0, 1, 2]) == ""
    # Of the pieces from 5000 to 10000, 1,180 have three characters or less; 544 begin words.
    short = [i for i in range(5_000, 10_001) if len(t5.piece(i).replace("▁", "")) <= 3]
    assert (len(short), sum(map(t5.is_word_start, short))) == (1_180, 544)


def test_clip_fits_into_the_same_class(shared_data):
    clip = text.load(shared_data / "tokenizers" / "clip")
    assert clip.vocab_size == 49_408
    assert clip.ids("sks") == (48_136,)
    assert clip.is_word_start(48_136)
    found = clip.encode(["a SKS dog"])
    # CLIP's begin mark, "a", "sks", "dog", then the end mark, which fills up as well.
    assert found["ids"].tolist() == [[49_406, 320, 48_136, 1_929] + [49_407] * 73]
    assert found["mask"].sum() == 5


def test_max_length_is_a_setting_and_no_prompts_are_no_rows(folder):
    short = text.load(folder, max_length=5)
    assert short.encode(["a photo of a dog", ""])["ids"].shape == (2, 5)
    empty = short.encode([])
    assert [(a.dtype.name, a.shape) for a in empty.values()] == [("int32", (0, 5))] * 2


def test_one_text_is_not_taken_for_a_list_of_letters(embedded):
    with pytest.raises(TypeError, match=r"write a list: \['a zib dog'\]"):
        embedded.encode("a zib dog")


@pytest.mark.parametrize(("fillers", "fits"), [(74, True), (75, True), (76, False), (90, False)])
def test_an_identifier_that_is_cut_off_is_an_error(embedded, pieces, fillers, fits):
    dog, photo = pieces.encode("dog"), pieces.encode("photo")
    assert (len(dog), len(photo)) == (1, 1)  # so that 75 photos, the dog and the end mark are 77
    prompts = ["a dog", "Photo " * fillers + "Dog, a photo"]
    if fits:
        assert dog[0] in embedded.encode(prompts, keep="dog")["ids"][1]
        return
    assert dog[0] not in embedded.encode(prompts)["ids"][1]
    with pytest.raises(ValueError, match="77 are kept") as error:
        embedded.encode(prompts, keep="dog")
    length = fillers + len(pieces.encode("dog, a photo")) + 1
    assert f"is {length} tokens long" in str(error.value)
    assert f"'dog' ends only at token {fillers + 2}" in str(error.value)
    assert "photo photo" in str(error.value)


@pytest.mark.parametrize("tail", ["dogs", "cat", "hotdog", ""])
def test_a_prompt_without_the_identifier_may_be_cut(embedded, tail, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        embedded.encode(["photo " * 90 + tail], keep="dog")
    (message,) = caplog.messages
    assert re.match(r"prompt cut from \d+ to 77 tokens: 'photo photo", message)


@pytest.mark.parametrize("identifier", ["<zib-1>", "a.b", "ZIB", " zib"])
def test_any_identifier_is_looked_for_as_it_is_written(embedded, identifier):
    embedded.encode([f"a {identifier} dog"], keep=identifier)
    with pytest.raises(ValueError, match="nearer to the beginning"):
        embedded.encode(["photo " * 90 + f"a {identifier} dog"], keep=identifier)


# Loading.


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer folder .*nowhere: expected"):
        text.load(tmp_path / "nowhere")


def test_a_folder_without_a_tokenizer_says_what_it_holds(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"holds no files; expected tokenizer_config\.json"):
        text.load(tmp_path)
    shutil.copytree(folder, tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*tokenizer'?\?"):
        text.load(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds .*spiece\.model.*tokenizer_config\.json"):
        text.load(tmp_path / "tokenizer")


def test_a_broken_tokenizer_names_its_folder(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text('{"half')
    with pytest.raises(ValueError, match=r"broken cannot be read as a tokenizer"):
        text.load(tmp_path / "broken")


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"dog": 0, "?": 1}, unk_token="?"))
    words.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "CLIPTokenizer", "unk_token": "?", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"no padding token.*\"pad_token\""):
        text.load(tmp_path)


# Tokenizers of others.


def asking(folder: Path, **changed: object) -> Path:
    """A tokenizer that brings code along, which makes a file when it runs."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **changed}))
    (folder / "evil.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w')\n"
        "from transformers import PreTrainedTokenizer\nclass Evil(PreTrainedTokenizer): pass\n"
    )
    auto = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    return folder


CLASSES = ("Evil", None, "T5Tokenizer", "BertTokenizer", "os.system", ["x"])


@pytest.mark.parametrize("named", CLASSES)
def test_code_of_a_tokenizer_never_runs_and_nobody_is_asked(named, tmp_path, folder, monkeypatch):
    copied = tmp_path / "tokenizer"
    shutil.copytree(folder, copied)
    asking(copied, tokenizer_class=named, auto_map={"AutoTokenizer": ["evil.Evil", None]})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    if named in ("T5Tokenizer", None):
        assert text.load(copied).ids("dog") == text.load(folder).ids("dog")
    else:
        with pytest.raises(ValueError, match=r"tokenizer_class = .* is not supported") as error:
            text.load(copied)
        assert "trust_remote_code" not in str(error.value)
    assert not (copied / "ran").exists()


def test_a_file_without_end_in_place_of_a_tokenizers(tmp_path, folder):
    copied = tmp_path / "tokenizer"
    shutil.copytree(folder, copied)
    (copied / "special_tokens_map.json").unlink(missing_ok=True)
    os.mkfifo(copied / "special_tokens_map.json")
    with pytest.raises(ValueError, match=r"special_tokens_map\.json is a pipe"):
        text.load(copied)


# Caption cleaning.


class _Text(html.parser.HTMLParser):
    """The text of a page without its tags: what BeautifulSoup's "html.parser" gives as `.text`."""

    def __init__(self, page, features):
        super().__init__()
        self.parts = []
        self.feed(page)
        self.close()

    def handle_data(self, data):
        self.parts.append(data)

    @property
    def text(self):
        return "".join(self.parts)


@pytest.fixture(scope="module")
def clean(pipeline):
    """diffusers' caption cleaning, twice as its pipelines do; ftfy's repairs do not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "BeautifulSoup", _Text, raising=False)
        ftfy = types.SimpleNamespace(fix_text=lambda caption: caption)
        patch.setattr(pipeline, "ftfy", ftfy, raising=False)
        cleaner = types.SimpleNamespace(bad_punct_regex=pipeline.IFPipeline.bad_punct_regex)

        def clean(prompt):
            once = pipeline.IFPipeline._clean_caption(cleaner, prompt)
            return pipeline.IFPipeline._clean_caption(cleaner, once)

        yield clean


def stands_in(cleaned, identifier):
    return re.search(rf"(?<!\w){re.escape(identifier)}(?!\w)", cleaned) is not None


@pytest.mark.parametrize("identifier", ["zib", "ohwx", "fla", "olis", "élé", "mpeg"])
@pytest.mark.parametrize("prompt", ["a {} dog", "A photo, of ({})'s dog!", "{}", 'the "{}" dog.'])
def test_words_of_letters_survive_cleaning(identifier, prompt, clean):
    prompt = prompt.format(identifier).replace(")'s", "'s)")
    assert text.survives_cleaning(prompt, identifier)
    assert stands_in(clean(prompt), identifier)


@pytest.mark.parametrize(
    ("prompt", "identifier"),
    [
        ("a [v] dog", "[v]"),
        ("a @zib dog", "@zib"),
        ("a #123 dog", "#123"),
        ("a jc6640 dog", "jc6640"),
        ("a jc6640vc dog", "jc6640vc"),
        ("a sks11df dog", "sks11df"),
        ("a <zib> dog", "<zib>"),
        ("a 犬 dog", "犬"),
        ("a pdf dog", "pdf"),
        ("a epsilon dog", "epsilon"),
        ("a shipping dog", "shipping"),
        ("please click on zib dog", "zib"),
        ("a <b zib > dog", "zib"),
        ("a zib.com dog", "zib"),
        ("a @zib dog", "zib"),
        ("a png image dog", "image"),
        ("a zib.png of a dog", "zib"),
        ("a free download", "free"),
    ],
)
def test_what_cleaning_deletes_is_known(prompt, identifier, clean):
    assert not stands_in(clean(prompt), identifier)
    assert not text.survives_cleaning(prompt, identifier)


@pytest.mark.parametrize("identifier", ["Zib", "z b", "", "zib2", "ﬁx"])
def test_what_is_no_plain_lower_case_word_is_not_trusted(identifier):
    assert not text.survives_cleaning(f"a {identifier} dog", identifier)


WORDS = st.sampled_from(
    "a zib dog click on for free shipping download png images page 12 @zib #zib zib.com <b> < > "
    "zib's (zib) zib, x.jpg zib.png zib-zib-zib-zib-zib &amp; &quot; http://zib.org www. 3x4 ' \" "
    "zib: zib2 /zib %7a + worldwide \\n . epszib [zib] zib| zib= 1.1.1.1 zib…".split()
)


@given(words=st.lists(WORDS, min_size=1, max_size=7), identifier=st.sampled_from(["zib", "dog"]))
def test_what_is_said_to_survive_does(words, identifier, clean):
    prompt = " ".join(words)
    if text.survives_cleaning(prompt, identifier):
        assert stands_in(clean(prompt), identifier), clean(prompt)
