"""The table of a fleet: its rows, and messages that name each line that cannot be used."""

import pytest

from dreambooth_jax.data import subject_table
from dreambooth_jax.data.subject_table import Row


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
        ("name,images,class_noun\na,x,dog\nb,,cat\n", "line 3: b needs images and class_noun"),
    ],
)
def test_what_cannot_be_used_is_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        subject_table.read(written(tmp_path, text))
