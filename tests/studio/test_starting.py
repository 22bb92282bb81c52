"""New runs: what is told of them before they start, and how they are started again."""

import errno
import json
import os
import shutil

import pytest
from studios import LIBRARY, client, make_run, photo, studio

FORM = {"name": "toy-run", "class_noun": "toy", "identifier": "auto", "config": "small"}
FORM |= {"captions": "prompt", "masks": "none", "action": "check"}


@pytest.fixture
def own(tmp_path):
    make_run(tmp_path / "runs" / "bird")  # of 8 rows a step, half a second each
    found = studio(tmp_path / "runs")
    found.places.new_subject("toy")
    return found


@pytest.fixture
def browser(own):
    found = client(own)
    found.post("/new/toy/photos", files={"photo": ("a.jpg", photo(), "image/jpeg")})
    return found


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, "runs like it in this folder: base 50 s"),
        ({"train.batch_size": 4}, "Time: not known"),
        ({"train.accumulate": 2}, "Time: not known"),
        ({"upscaler.batch_size": 64}, "Time: not known"),
        ({"adapt.name": "lora"}, "Time: not known"),
        ({"resolution": [64, 96]}, "Time: not known"),
        ({"seed": 5}, "runs like it in this folder: base 50 s"),
    ],
)
def test_time_is_told_of_runs_with_the_settings_that_the_check_found(own, browser, changed, told):
    """Wherever they were written: configuration, a field of their own, the other settings."""
    values = LIBRARY["configs"]["small"]["values"] | changed
    found = {"problem": "", "steps": {"base": 100}, "size": 64, "values": values}
    own.library.check = lambda arguments: found
    assert told in browser.post("/new/toy", data=FORM).text


def queued(own, browser, **changed):
    """The arguments of a new run that waits in the queue."""
    sent = FORM | {"action": "queue", "steps": "70", "more": "train.batch_size=4"} | changed
    assert browser.post("/new/toy", data=sent).headers["location"] == "/queue"
    return own.jobs.of("toy-run")[0]


def test_a_run_that_was_taken_out_of_the_queue_can_be_started(own, browser):
    job = queued(own, browser)
    browser.post("/queue/remove", data={"key": job.key})
    assert own.jobs.all() == []
    assert "Continue" in browser.get("/run/toy-run").text
    assert browser.post("/run/toy-run/resume", data={"action": "queue"}).is_redirect
    assert own.jobs.of("toy-run")[0].arguments == job.arguments


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config=elsewhere/evil.py"], "no --config of small"),
        (["--workdir=x"], "no --config of small"),
        (["--config=x/small.py", "--config.compile.cache_dir=x"], "not a setting"),
        (["--config=x/small.py", "--config.nonsense=1"], "not a setting"),
        ([], "wrote no settings"),
        ("--config=x/small.py", "wrote no settings"),
        ([5], "wrote no settings"),
    ],
)
def test_a_note_of_others_starts_nothing_that_the_page_would_not(own, browser, words, told):
    folder = own.places.root / "theirs"
    folder.mkdir()
    (folder / "studio.json").write_text(json.dumps({"command": words}))
    answer = browser.post("/run/theirs/resume", data={"action": "queue"})
    assert answer.status_code == 400 and told in answer.text
    assert own.jobs.all() == []


def test_no_flag_of_a_note_but_settings_is_taken(own, browser):
    folder = own.places.root / "theirs"
    folder.mkdir()
    words = ["--config=x/small.py", "--workdir=x", "--mode=push", "--flagfile=x"]
    (folder / "studio.json").write_text(json.dumps({"command": words}))
    assert browser.post("/run/theirs/resume", data={"action": "queue"}).is_redirect
    (job,) = own.jobs.all()
    assert job.arguments == ("--config=configs/small.py", f"--workdir={folder}")


def begun(own, browser):
    """The arguments of a run that was begun from the page, and ended."""
    job = queued(own, browser)
    file = own.places.state / "jobs.json"
    record = json.loads(file.read_text())
    record["jobs"][0] |= {"state": "ended", "code": 143}
    file.write_text(json.dumps(record))
    return job.arguments


@pytest.mark.parametrize("records", [True, False], ids=["with records", "without"])
@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_run_of_a_moved_or_copied_folder_goes_on_there(own, browser, tmp_path, how, records):
    arguments = begun(own, browser)
    old, new = own.places.root, tmp_path / "other" / "runs"
    photos = {"subject": {"class_noun": "toy", "images": str(old / "photos" / "toy")}}
    make_run(old / "toy-run", settings=photos)
    assert f"--config.subject.images={old / 'photos' / 'toy'}" in arguments
    how(old, new)
    if not records:
        shutil.rmtree(new / ".studio")
    there = studio(new)
    assert client(there).post("/run/toy-run/resume", data={"action": "queue"}).is_redirect
    job = there.jobs.of("toy-run")[0]
    folder = new / "toy-run"
    # The photos that a run was begun with are part of its settings, while they are there.
    moved = [f"--config.subject.images={new / 'photos' / 'toy'}"] if how is shutil.move else []
    assert list(job.arguments) == [
        f"--config=configs/of_run.py:{folder}", f"--workdir={folder}", "--mode=train", *moved
    ]  # fmt: skip


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_one_that_wrote_nothing_yet_starts_with_the_photos_there(own, browser, tmp_path, how):
    arguments = begun(own, browser)
    old, new = own.places.root, tmp_path / "other" / "runs"
    how(old, new)
    there = studio(new)
    assert client(there).post("/run/toy-run/resume", data={"action": "queue"}).is_redirect
    job = there.jobs.of("toy-run")[0]
    assert list(job.arguments) == [word.replace(str(old), str(new)) for word in arguments]
    assert any(str(new / "photos" / "toy") in word for word in job.arguments)


def test_a_folder_by_another_way_is_the_same_one(own, browser, tmp_path):
    arguments = begun(own, browser)
    make_run(own.places.root / "toy-run")
    (tmp_path / "link").symlink_to(own.places.root)
    there = studio(tmp_path / "link")
    assert client(there).post("/run/toy-run/resume", data={"action": "queue"}).is_redirect
    assert there.jobs.of("toy-run")[0].arguments == arguments


def test_photos_in_a_place_of_another_user_are_no_longer_there(own, browser, monkeypatch):
    """The folder of runs was copied from another user's home, who closed it since."""
    old = "/somewhere/theirs/runs"
    folder = own.places.root / "toy-run"
    make_run(folder, settings={"subject": {"class_noun": "toy", "images": f"{old}/photos/toy"}})
    words = ["--config=x/small.py", f"--workdir={old}/toy-run"]
    (folder / "studio.json").write_text(json.dumps({"command": words}))
    stat = os.stat

    def looked(path, *args, **how):
        if str(path).startswith(old):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **how)

    monkeypatch.setattr(os, "stat", looked)
    assert browser.post("/run/toy-run/resume", data={"action": "queue"}).is_redirect
    (job,) = own.jobs.all()
    assert job.arguments[-1] == f"--config.subject.images={own.places.photos / 'toy'}"
