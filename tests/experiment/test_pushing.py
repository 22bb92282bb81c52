"""Sending an export to a model hub: refused before anything is trained, or there as a whole."""

import shutil
import types
from pathlib import Path

import commands
import hub_for_writing
import pytest
from huggingface_hub import ModelCard

from dreambooth_jax import config
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
        api = types.SimpleNamespace(endpoint=serving.address)
        del api
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


def test_a_refusal_after_training_is_a_warning_with_the_command(hub, run, caplog):
    hub.broken = True
    plan = config.resolve(settings_of(run, export__push_to_hub="anna/zib"))
    pushing.after_run(plan, Workdir.of_run(run, plan))
    assert "storage limit" in caplog.text and "--mode=push" in caplog.text
    hub.broken = False
    pushing.after_run(plan, Workdir.of_run(run, plan))
    assert "images/00.png" in hub.files["anna/zib"]


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
