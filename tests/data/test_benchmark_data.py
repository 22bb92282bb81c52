"""The benchmark's tables against the published file, copies of it in any state of completeness."""

import ast
import json
import re
from collections import Counter

import benchmark_copies
import pytest

from dreambooth_jax.data import benchmark
from dreambooth_jax.data.audit import AuditError
from dreambooth_jax.data.prompts import PROMPT_SETS


def test_counts_are_those_of_the_paper():
    members = benchmark.MEMBERS.values()
    assert len(members) == 30
    assert Counter(member.live for member in members) == {False: 21, True: 9}
    assert len(benchmark.CLASSES) == 15
    assert {member.class_noun for member in members} == set(benchmark.CLASSES)
    assert all(4 <= member.num_photos <= 6 for member in members)
    assert sum(member.num_photos for member in members) == 158  # files of the published checkout
    for member in members:
        assert len(set(member.prompts)) == 25
    assert {noun for noun in benchmark.CLASSES if noun in ("cat", "dog")} == {
        member.class_noun for member in members if member.live
    }


def test_tables_are_those_of_the_published_file(shared_data):
    text = (shared_data / "dreambooth" / "dataset" / "prompts_and_classes.txt").read_text()
    table = re.findall(r"^(\w+),([\w ]+)$", text, re.MULTILINE)
    assert table[0] == ("subject_name", "class")
    assert dict(table[1:]) == {m.name: m.class_noun for m in benchmark.MEMBERS.values()}

    lists = [
        [ast.literal_eval(line) for line in re.findall(r"^('.*')\.format\(", part, re.MULTILINE)]
        for part in text.split("prompt_list = ")[1:]
    ]
    wanted = [[line.format("zib", "dog") for line in part] for part in lists]
    ours = [PROMPT_SETS["benchmark_object"], PROMPT_SETS["benchmark_live"]]
    assert [[line.format(subject="zib dog") for line in part] for part in ours] == wanted


def test_the_subjects_that_are_here_and_their_photos(shared_data):
    folder = shared_data / "dreambooth"
    listed = {
        entry["subject"]: entry for entry in json.loads((folder / "manifest.json").read_text())
    }
    checkout = benchmark.locate(folder)
    assert benchmark.locate(folder / "dataset") == checkout
    assert [member.name for member in checkout.present] == sorted(listed)
    assert len(checkout.missing) == 15 and checkout.unknown == ()
    for member, audit in checkout.audits(size=512, strict=True):
        entry = listed[member.name]
        assert (member.class_noun, member.live) == (entry["cls"], entry["live"])
        assert len(audit.kept) == member.num_photos == entry["n"]


def test_a_copy_with_gaps_says_what_it_lacks(tmp_path):
    folder = benchmark_copies.make(tmp_path, ["dog", "vase"])
    (folder / "dataset" / "cat").mkdir()  # empty: not there
    (folder / "dataset" / "my_dog").mkdir()
    checkout = benchmark.locate(folder)
    assert [member.name for member in checkout.present] == ["dog", "vase"]
    assert "2 of the 30 subjects" in str(checkout)
    assert re.search(r"not there: .*\bcat, cat2\b", str(checkout))
    assert "left out: my_dog" in str(checkout)
    kept = {member.name: len(audit.kept) for member, audit in checkout.audits(size=16)}
    assert kept == {"dog": 3, "vase": 3}

    assert [m.name for m in benchmark.chosen(checkout, ())] == ["dog", "vase"]
    assert [m.name for m in benchmark.chosen(checkout, ("vase", "vase"))] == ["vase"]
    with pytest.raises(ValueError, match=r"'teapott'.*Did you mean 'teapot'.*'can' is not in"):
        benchmark.chosen(checkout, ("teapott", "can"))


def test_what_is_no_copy_is_refused(tmp_path):
    with pytest.raises(AuditError, match=r"No folder .*git clone"):
        benchmark.locate(tmp_path / "nowhere")
    folder = benchmark_copies.make(tmp_path, ["dog"])
    with pytest.raises(AuditError, match="Did you mean its parent"):
        benchmark.locate(folder / "dataset" / "dog")
    (tmp_path / "other" / "photos").mkdir(parents=True)
    with pytest.raises(AuditError, match=r"none of the benchmark's 30.*Found photos"):
        benchmark.locate(tmp_path / "other")
