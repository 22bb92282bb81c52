"""Sending an export to a model hub: refused before anything is trained, or there as a whole."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import commands
import hub_for_writing
import pytest
from huggingface_hub import ModelCard

from dreambooth_jax import config, report, status
from dreambooth_jax.experiment import run as whole
from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import pushing
from dreambooth_jax.export import upload


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that huggingface_hub talks to, with a token that may write."""
    from huggingface_hub import constants, hf_api

    with hub_for_writing.serving() as serving:
        for module in (constants, hf_api):
            if hasattr(module, "ENDPOINT"):
                monkeypatch.setattr(module, "ENDPOINT", serving.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        init = hf_api.HfApi.__init__

        def here(self, *arguments, **how):
            init(self, *arguments, **({"endpoint": serving.address} | how))

        monkeypatch.setattr(hf_api.HfApi, "__init__", here)
        yield serving


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run of a tiny cascade."""
    copy = tmp_path_factory.mktemp("pushing") / "run"
    shutil.copytree(commands.reference(tmp_path_factory)[1], copy)
    return copy


def settings_of(run: Path, **changed) -> config.ConfigDict:
    c = config.of_run(str(run))
    c.update_from_flattened_dict({key.replace("__", "."): value for key, value in changed.items()})
    return c


def test_an_old_run_is_sent_whole_and_private(hub, run):
    c = settings_of(run, export__push_to_hub="anna/zib")
    assert MODES["push"].function(c, run) == run / "export"
    assert hub.private == {"anna/zib": True}
    sent = hub.files["anna/zib"]
    here = {
        path.relative_to(run / "export").as_posix(): path.read_bytes()
        for path in (run / "export").rglob("*")
        if path.is_file()
    }
    assert {name: sent[name] for name in here} == here
    card = ModelCard(sent["README.md"].decode())
    pictures = {each["output"]["url"]: each["text"] for each in card.data.to_dict()["widget"]}
    assert pictures.keys() == {name for name in sent if name.startswith("images/")}
    after = run / "samples" / "after"
    assert sent["images/00.png"] == (after / "00_00.png").read_bytes()
    assert pictures["images/01.png"] == "a bird"
    assert "(upscaler/README.md)" in card.text
    assert sent.keys() == here.keys() | pictures.keys() | {"README.md"}
    assert len(hub.messages) == 1


def test_a_public_repository_only_where_it_is_asked_for(hub, run):
    c = settings_of(run, export__push_to_hub="lab/zib", export__private=False)
    MODES["push"].function(c, run)
    assert hub.private == {"lab/zib": False}
    with pytest.raises(upload.UploadError, match="is public"):
        MODES["push"].function(settings_of(run, export__push_to_hub="lab/zib"), run)
    assert len(hub.messages) == 1


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("anna/zib", "", "no token"),
        ("anna/zib", "hf_wrong", "Invalid user token"),
        ("anna/zib", "hf_read", "may only read"),
        ("ben/zib", "hf_write", "belongs to anna, lab"),
        ("zib", "hf_write", "expected 'owner/name'"),
        ("anna/zib/x", "hf_write", "anna/zib/x"),
    ],
)
def test_a_name_or_token_that_will_not_do_is_told_before_training(
    hub, run, monkeypatch, name, token, message
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token or None)
    plan = config.resolve(settings_of(run, export__push_to_hub=name))
    with pytest.raises(upload.UploadError, match=message):
        pushing.check(plan)
    assert hub.files == {}


def test_no_hub_that_answers_is_told_before_training(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_write")
    with pytest.raises(upload.UploadError, match="HF_HUB_OFFLINE"):
        upload.check("anna/zib", private=True)


def answering(kind: str, server: socket.socket) -> None:
    """Takes connections and answers none of them as a hub does, until the socket is closed."""
    texts = {
        "login page": ("200 OK", "<html>"),
        "list": ("200 OK", "[]"),
        "number": ("200 OK", "1"),
    }
    status, body = texts.get(kind, (kind, "{}"))
    reply = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    with contextlib.suppress(OSError):
        while True:
            taken, _ = server.accept()
            with taken:
                taken.recv(2**16)
                if kind != "hangs up":
                    taken.sendall(b"SSH-2.0\r\n" if kind == "another server" else reply.encode())


FAULTS = ("nobody", "no such name", "no such proxy", "silent", "hangs up", "another server",
          "login page", "list", "number", "401 Unauthorized", "403 Forbidden",
          "407 Proxy Authentication Required", "500 Error", "503 Unavailable")  # fmt: skip


@pytest.fixture(params=FAULTS)
def unreachable(request, hub, monkeypatch):
    """A hub that was there before the training, and is not any more."""
    from huggingface_hub import utils

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_write")
    monkeypatch.setattr(upload, "_ASKED", 0.3)
    monkeypatch.setattr(upload, "_SENT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub.address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if request.param == "no such name":
            hub.address = "http://no-such-host.invalid"
        if request.param == "no such proxy":
            monkeypatch.setenv("http_proxy", hub.address)
            hub.address = "http://hub.invalid"
        if request.param in ("nobody", "no such name", "no such proxy"):
            server.close()
        elif request.param != "silent":
            threading.Thread(target=answering, args=(request.param, server), daemon=True).start()
        utils.close_session()  # of the client that knows no proxy
        yield hub
    utils.close_session()


def test_a_hub_out_of_reach_is_one_message_with_the_folder_and_the_command(
    unreachable, run, monkeypatch
):
    plan = config.resolve(settings_of(run, export__push_to_hub="anna/zib"))
    late = pushing.after_run(plan, Workdir.of_run(run, plan))
    with pytest.raises(upload.UploadError) as asked:
        MODES["push"].function(settings_of(run, export__push_to_hub="anna/zib"), run)
    for error in (late, asked.value):
        told = str(error)
        assert "\n" not in told and f"It lies in {run / 'export'};" in told
        words = shlex.split(told.partition("sends it later: ")[2])
        assert words == [
            *("dreambooth-jax", "push", f"--config=of_run:{run}"),
            "--config.export.push_to_hub=anna/zib",
        ]
    with pytest.raises(upload.UploadError, match=r"Nothing is drawn or trained yet.*push"):
        pushing.check(plan)


def test_the_command_has_what_differs_from_the_run(run):
    changed = {"push_to_hub": "lab/zib", "private": False, "push_part": "model"}
    c = settings_of(run, **{f"export__{key}": value for key, value in changed.items()})
    plan = config.resolve(c)
    told = str(pushing.later(plan, Workdir.of_run(run, plan), ValueError("x")))
    assert [word.partition(".export.")[2] for word in shlex.split(told)[-3:]] == [
        f"{key}={value}" for key, value in changed.items()
    ]


def test_a_run_whose_export_is_refused_is_whole_and_ends_with_that_error(
    hub, run, tmp_path, monkeypatch, caplog
):
    """The hub takes the name and the token before the training, and no files after it."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_write")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    hub.broken = True
    c = settings_of(copy, export__push_to_hub="anna/zib")
    (copy / "report.html").unlink()
    shutil.rmtree(copy / "export")
    with pytest.raises(upload.UploadError, match=r"storage limit.* It lies in .*sends it later"):
        commands.here(MODES["train"].function, c, copy)
    assert report.is_final(copy / "report.html") and (copy / "export").is_dir()
    assert status.read(copy).state == "finished"
    (copy / "report.html").unlink()
    caplog.clear()
    commands.here(whole.run, c, copy)  # for a program the report is there, and a warning
    told = [each.getMessage() for each in caplog.records if "storage limit" in each.getMessage()]
    assert len(told) == 1 and report.is_final(copy / "report.html")


def test_the_command_of_the_message_sends_the_export(hub, run, tmp_path, repository):
    copy = tmp_path / "a b'c $x"
    shutil.copytree(run, copy)
    words = ["push", f"--config=of_run:{copy}", "--config.export.push_to_hub=anna/zib"]

    def said(*words: str, address: str) -> subprocess.CompletedProcess[str]:
        environment = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_write", "HF_HUB_OFFLINE": "0"}
        return subprocess.run(
            [sys.executable, "-m", "dreambooth_jax.console", *words],
            cwd=repository,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    refused = said(*words, address="http://127.0.0.1:9")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    (line,) = [each for each in refused.stderr.splitlines() if "sends it later: " in each]
    again = shlex.split(line.partition("sends it later: ")[2])
    assert again[0] == "dreambooth-jax"
    sent = said(*again[1:], address=hub.address)
    assert sent.returncode == 0, sent.stderr
    assert "base/model_index.json" in hub.files["anna/zib"]


def test_lora_files_are_sent_alone(tmp_path):
    lora = "pytorch_lora_weights.safetensors"
    (tmp_path / "unet").mkdir()
    (tmp_path / "lora").mkdir()
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "X"]}')
    for name in ("unet/model.safetensors", f"lora/{lora}", "lora/README.md", "lora/notes.txt"):
        (tmp_path / name).write_text("")
    assert pushing.to_send(tmp_path, part="auto").keys() == {lora, "README.md"}
    assert "unet/model.safetensors" in pushing.to_send(tmp_path, part="model")
    shutil.rmtree(tmp_path / "lora")
    assert "model_index.json" in pushing.to_send(tmp_path, part="auto")
    with pytest.raises(upload.UploadError, match="no LoRA files"):
        pushing.to_send(tmp_path, part="lora")
    with pytest.raises(upload.UploadError, match="no export to send"):
        pushing.to_send(tmp_path / "nowhere", part="auto")


SECRET = b"HF_TOKEN=hf_0123456789"


def test_nothing_but_what_an_export_writes_is_sent(hub, run, tmp_path, caplog):
    """A person's own files, in every folder of an export, hidden and plain."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    place = copy / "export"
    written = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    folders = [place, *(each for each in place.rglob("*") if each.is_dir())]
    own = (".env", ".git/config", ".netrc", "notes.txt", "id_rsa", "photos/01.png", "x.ckpt",
           "train.py", ".ipynb_checkpoints/config.json", "model.safetensors.bak")  # fmt: skip
    for folder in folders:
        for name in own:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(SECRET)
    MODES["push"].function(settings_of(copy, export__push_to_hub="anna/zib"), copy)
    sent = hub.files["anna/zib"]
    assert {name for name in sent if not name.startswith("images/")} == written | {"README.md"}
    assert SECRET not in sent.values()
    (line,) = [each.getMessage() for each in caplog.records if "Left behind" in each.getMessage()]
    assert ".env" in line and ".git/" in line and "\n" not in line


@pytest.mark.parametrize(
    "name", ["base/README.md", "base/unet/config.json", "base/unet", "upscaler", "../samples/after"]
)
def test_a_link_out_of_the_export_is_never_followed(hub, run, tmp_path, name, caplog):
    copy, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(run, copy)
    place = copy / "export" / name
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    c = settings_of(copy, export__push_to_hub="anna/zib")
    if name.startswith(".."):  # pictures are an addition
        MODES["push"].function(c, copy)
        assert "leads out of the run" in caplog.text
        assert not any(each.startswith("images/") for each in hub.files["anna/zib"])
        return
    with pytest.raises(upload.UploadError, match=rf"export: {name}/?: a link .* Nothing is sent"):
        MODES["push"].function(c, copy)
    assert not hub.files.get("anna/zib")


def test_push_without_a_name(run):
    with pytest.raises(config.ConfigError, match="push_to_hub is empty"):
        MODES["push"].function(settings_of(run), run)
