"""Files of prompts: what a line may hold, and what is told of lines that are wrong."""

import os

import pytest

from dreambooth_jax.data import prompt_lines
from dreambooth_jax.data.prompt_lines import Line
from dreambooth_jax.untrusted import FileError

FIELDS = ("subject", "class_noun")


def written(tmp_path, text: str):
    file = tmp_path / "prompts.txt"
    file.write_bytes(text.encode())
    return file


def test_lines_have_up_to_four_parts(tmp_path):
    file = written(
        tmp_path,
        "\ufeff# of the poster\r\n"
        "a {subject} on the moon\r\n"
        "\n"
        "a {class_noun}, oil | blurry, {class_noun} | 42 | 768x512\n"
        "  a hat || 0\n"
        "a hut | | | 64 × 32\n"
        "über alles, 鸟 | dark",
    )
    assert prompt_lines.read(file, fields=FIELDS) == (
        Line("a {subject} on the moon", None, None, None, 2),
        Line("a {class_noun}, oil", "blurry, {class_noun}", 42, (768, 512), 4),
        Line("a hat", None, 0, None, 5),
        Line("a hut", None, None, (64, 32), 6),
        Line("über alles, 鸟", "dark", None, None, 7),
    )


def test_braces_get_a_subject_s_words(tmp_path):
    file = written(tmp_path, "a {subject} {{and}} | a {class_noun}\n")
    (line,) = prompt_lines.read(file, fields=FIELDS)
    found = line.with_words({"subject": "zib dog", "class_noun": "dog"})
    assert (found.prompt, found.negative) == ("a zib dog {and}", "a dog")


def test_all_wrong_lines_are_told_at_once(tmp_path):
    file = written(
        tmp_path,
        "a {subjct}\na|b|c|d|e\n| blurry\na | | -1\na | | 4294967296\na | | | 512\n"
        "a {subject\na {subject!r}\nfine\n",
    )
    with pytest.raises(FileError) as caught:
        prompt_lines.read(file, fields=FIELDS)
    message = str(caught.value)
    assert str(file) in message
    for number, part in (
        (1, "found {subjct}, expected only {subject}, {class_noun}"),
        (2, "found 5 parts, expected at most 4"),
        (3, "no prompt before the first |"),
        (4, "found the seed '-1', expected a whole number"),
        (5, "found the seed '4294967296'"),
        (6, "found the size '512', expected HEIGHTxWIDTH"),
        (7, "for a brace that is meant"),
        (8, "found {subject}, expected only"),
    ):
        assert any(
            line.strip().startswith(f"line {number}: ") and part in line
            for line in message.splitlines()
        ), (number, message)
    assert "line 9" not in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a | | 1.5", "found the seed '1.5'"),
        ("a | | ²", "found the seed '²'"),
        ("a | | " + "9" * 5000, "found the seed '999"),
        ("a | | | 0x0", "found the size '0x0'"),
        ("a | | | 0x512", "found the size '0x512'"),
        ("a | | | -8x8", "found the size '-8x8'"),
        ("a | | | 512.0x512", "found the size '512.0x512'"),
        ("a | | | 8193x8", "found the size '8193x8', expected HEIGHTxWIDTH in pixels up to 8192"),
        ("a | | | 99999x99999", "found the size '99999x99999'"),
        ("a | | | " + "1" * 5000 + "x8", "found the size '111"),
        ("a {" + "x" * 10_000 + "}", "found {xxx"),
        ("a {subject:>1000000000}", "found {subject}, expected only"),
        ("a\0b", "found the control character U+0000"),
        ("a \x1b[31m b", "found the control character U+001B"),
        ("a \u0085 b", "found the control character U+0085"),
    ],
)
def test_a_line_that_cannot_be_is_told_in_short(tmp_path, line, message):
    with pytest.raises(FileError) as caught:
        prompt_lines.read(written(tmp_path, f"fine\n{line}\n"), fields=FIELDS)
    assert f"line 2: {message}" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_many_wrong_lines_are_counted(tmp_path):
    with pytest.raises(FileError, match="and 980 more") as caught:
        prompt_lines.read(written(tmp_path, "a | | x\n" * 1000), fields=FIELDS)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_ends_are_read(tmp_path, end):
    found = prompt_lines.read(
        written(tmp_path, end.join(("a hat", "", "a | | 007"))), fields=FIELDS
    )
    assert [(line.prompt, line.seed, line.number) for line in found] == [
        ("a hat", None, 1),
        ("a", 7, 3),
    ]


@pytest.mark.parametrize("text", ["", "\n# nothing\n"])
def test_a_file_without_a_prompt_is_refused(tmp_path, text):
    with pytest.raises(FileError, match="has no prompt; expected one a line"):
        prompt_lines.read(written(tmp_path, text), fields=FIELDS)


def test_other_files_are_refused_by_name(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(FileError, match=r"prompts\.txt"):
        prompt_lines.read(file, fields=FIELDS)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileError, match="pipe"):
        prompt_lines.read(pipe, fields=FIELDS)
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as opened:
        opened.truncate(100 * 2**20)
    for other in (huge, tmp_path):
        with pytest.raises(FileError, match=other.name):
            prompt_lines.read(other, fields=FIELDS)
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        prompt_lines.read(tmp_path / "none.txt", fields=FIELDS)
