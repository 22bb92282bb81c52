"""The table of a fleet: its rows, and messages that name each line that cannot be used."""

import os

import pytest

from dreambooth_jax.data import subject_table
from dreambooth_jax.data.subject_table import Row
from dreambooth_jax.untrusted import FileError


def written(folder, text):
    file = folder / "fleet.csv"
    file.write_text(text)
    return file


def test_rows_have_folders_beside_the_table_and_a_word_that_may_be_chosen(tmp_path):
    text = "name,images,class_noun,identifier\na,photos/a,dog,zib\nb,/far/b,clay pot,\nc,gs://x/c,cat\n"
    assert subject_table.read(written(tmp_path, text)) == (
        Row("a", str(tmp_path / "photos/a"), "dog", "zib"),
        Row("b", "/far/b", "clay pot", "auto"),
        Row("c", "gs://x/c", "cat", "auto"),
    )


def test_the_word_may_have_no_column_and_columns_any_order(tmp_path):
    file = written(tmp_path, "class_noun, name ,images\ndog,a,embedded\n")
    assert subject_table.read(file) == (Row("a", "embedded", "dog", "auto"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column name, images, class_noun"),
        ("name,folder\na,b\n", r"no column images, class_noun, found: name, folder"),
        ("name,images,class_noun\n", "no subject in it"),
        ("name,images,class_noun\n../a,x,dog\n", "line 2: name = '../a'"),
        ("name,images,class_noun\na,x,dog\na,y,cat\n", "line 3: name = 'a' is taken"),
        ("name,images,class_noun\nprior,x,dog\n", "line 2: name = 'prior' is taken"),
        ("name,images,class_noun\na,x,dog\nb,,\n", "line 3: b needs images and class_noun"),
        ("name,images,class_noun\na,x,dog\nb,,cat\n", "line 3: b needs images$"),
        ("name;images;class_noun\na;x;dog\n", "no column name, images.*with a comma between"),
        ("name,name,images,class_noun\na,b,x,dog\n", "the column name twice"),
        ("name,images,class_noun,identifer\na,x,dog,zib\n", "identifer, which is not identifier"),
        ("name,images,class_noun\na,x, y,dog\n", "line 2: 1 cells more than columns.*quotes"),
        ("name,images,class_noun\n\n\n..,x,dog\n", r"line 4: name = '\.\.'"),
        ("name,images,class_noun\n/etc,x,dog\n", "line 2: name = '/etc'"),
        ("name,images,class_noun\na\\b,x,dog\n", r"line 2: name = 'a"),
        (f"name,images,class_noun\n{'a' * 101},x,dog\n", "line 2: name = 'aaa.*at most 100"),
        ("name,images,class_noun\nA,x,dog\na,y,dog\n", "line 3: name = 'a' is taken by 'A'"),
        ("name,images,class_noun\nPrior,x,dog\n", "line 2: name = 'Prior' is taken"),
        ("name,images,class_noun\nfleet.json,x,dog\n", r"line 2: name = 'fleet\.json' is taken"),
        ("name,images,class_noun\na,~nobody-here/x,dog\n", "line 2: images: ~nobody-here"),
        ("name,images,class_noun\na,x\0y,dog\n", "line 2: images = .*expected a folder"),
        ("name,images,class_noun\na,x,clay pot\nb,y,clay_pot\n", "line 3: .*share a folder"),
        ("name,images,class_noun\na,x,Dog\nb,y,dog\n", "line 3: .*share a folder"),
        ('name,images,class_noun\na,"x,dog\nb,y,dog\n', "cannot be read as a table"),
        (f"name,images,class_noun\na,{'x' * 200_000},dog\n", "cannot be read as a table"),
        ("name,images,class_noun\n" + "/,x,dog\n" * 50, "and 30 more"),
    ],
)
def test_what_cannot_be_used_is_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){message}") as caught:
        subject_table.read(written(tmp_path, text))
    assert "fleet.csv" in str(caught.value)
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_program_s_lines_and_byte_order_mark_are_read(mark, end, tmp_path):
    lines = (f"{mark}name,images,class_noun", "a,/x,dog", "", 'b,"/y, z",cat', "")
    file = tmp_path / "fleet.csv"
    file.write_bytes(end.join(lines).encode())
    assert subject_table.read(file) == (Row("a", "/x", "dog"), Row("b", "/y, z", "cat"))


def test_what_is_no_table_is_refused_by_name(tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    binary, huge = tmp_path / "binary.csv", tmp_path / "huge.csv"
    binary.write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with huge.open("wb") as opened:
        opened.truncate(subject_table.LIMIT + 1)
    for file in (pipe, binary, huge, tmp_path):
        with pytest.raises(FileError, match=file.name):
            subject_table.read(file)
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        subject_table.read(tmp_path / "none.csv")
