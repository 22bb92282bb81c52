"""Models with a hub id, from a hub that runs here: what is downloaded, and what a refusal says."""

import fnmatch
import os
import shutil
import subprocess
import sys
from pathlib import Path

import local_hub
import pytest

from dreambooth_jax import files
from dreambooth_jax.pipeline import hub as hubs

PROGRAM = """
import sys
from dreambooth_jax import families, pipeline

name, variant, offline = sys.argv[1:]
try:
    stage = families.open_stage(
        name, kind="base", variant=variant or None, offline=offline == "offline"
    )
    flat = pipeline.read_weights(stage)
except FileNotFoundError as error:
    sys.exit(str(error))
print(len(flat), stage.folder)
"""


@pytest.fixture(scope="module")
def repository_folder(tiny_cascade, tmp_path_factory) -> Path:
    """A model with weights twice, as pickles as well, and files that nobody needs."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    shutil.copytree(tiny_cascade["base"], folder)
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        plain = folder / part / f"{stem}.safetensors"
        shutil.copyfile(plain, folder / part / f"{stem}.fp16.safetensors")
        (folder / part / f"{stem}.bin").write_bytes(b"pickle")
    (folder / "everything.safetensors").write_bytes(b"one file")
    (folder / "picture.png").write_bytes(b"png")
    return folder


@pytest.fixture(scope="module")
def hub(repository_folder):
    with local_hub.serving(repository_folder) as (address, asked):
        yield address, asked


def ask(address, cache, name, *, variant="", offline="") -> subprocess.CompletedProcess[str]:
    environment = {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(cache),
        "HF_TOKEN": "",
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, name, variant, offline],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_model_is_downloaded_once_and_serves_without_the_hub(hub, repository_folder, tmp_path):
    address, asked = hub
    asked.clear()
    done = ask(address, tmp_path, "owner/model")
    assert done.returncode == 0, done.stderr
    got = set(asked)
    here = {
        p.relative_to(repository_folder).as_posix()
        for p in repository_folder.rglob("*")
        if p.is_file()
    }
    not_needed = {name for name in here if name.endswith((".bin", ".png", ".fp16.safetensors"))}
    assert got == here - not_needed - {"everything.safetensors"}
    assert len(asked) == len(got)
    assert local_hub.COMMIT in done.stdout

    # Again, and again from an address where nobody answers: nothing is downloaded.
    asked.clear()
    again = ask(address, tmp_path, "owner/model")
    nowhere = ask("http://127.0.0.1:9", tmp_path, "owner/model", offline="offline")
    assert again.stdout == nowhere.stdout == done.stdout, again.stderr + nowhere.stderr
    assert asked == []


def test_a_variant_and_a_revision(hub, tmp_path):
    address, asked = hub
    asked.clear()
    done = ask(address, tmp_path, "owner/model@fp16", variant="fp16")
    assert done.returncode == 0, done.stderr
    weights = {name for name in asked if name.endswith(".safetensors")}
    assert weights == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("owner/gated", ["owner/gated is gated", "accept its licence", "hf auth login"]),
        ("owner/absent", ["no public repository of that name", "Check the spelling"]),
        ("owner/model@v9", ["owner/model has no revision 'v9'", "after the @"]),
    ],
)
def test_a_refusal_is_one_message_that_says_what_to_do(hub, name, words, tmp_path):
    done = ask(hub[0], tmp_path, name)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert all(word in lines[-1] for word in words), done.stderr


@pytest.mark.parametrize("offline", ["", "offline"])
def test_a_hub_that_cannot_be_reached(offline, tmp_path):
    done = ask("http://127.0.0.1:9", tmp_path, "owner/model", offline=offline)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "cannot be reached" in last
    assert "hf download owner/model --local-dir" in last


@pytest.mark.parametrize("address", ["gs://b/../../../home", "gs://../x", "gs://b//c", "gs://"])
def test_an_address_never_leads_out_of_the_cache(address, tmp_path, monkeypatch):
    """What lies at the address's place in the cache is replaced and removed."""
    monkeypatch.setattr(files, "at", Path)
    monkeypatch.setattr(files, "mirror", lambda *_, **__: pytest.fail("it was copied"))
    with pytest.raises(ValueError, match=r"names .*, which is no path of a file inside"):
        hubs.locate(address, kind="base", cache_dir=str(tmp_path))


def test_components_without_the_variant_are_fetched_plain(tmp_path):
    """A UNet alone has files of the variant; a scheduler has no weights at all."""
    published = {
        "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
    }  # fmt: skip

    def fetch(*, patterns):
        for name in published:
            if any(fnmatch.fnmatch(name, each) for each in patterns):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).touch()
        return tmp_path

    hubs._with_plain(fetch, hubs.wanted_files("fp16"), "fp16")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert found == published - {"unet/diffusion_pytorch_model.safetensors"}
