"""The command itself: its address, its refusals, the demonstration."""

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from studios import make_run

from dreambooth_jax.studio import __main__ as command
from dreambooth_jax.studio import runs, serving
from dreambooth_jax.studio.places import Places, RefusedError

TOKEN = "x" * 20


def test_it_listens_on_this_computer_and_prints_its_address(tmp_path):
    make_run(tmp_path / "bird")
    words = [sys.executable, "-m", "dreambooth_jax.studio", str(tmp_path), "--port=0"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        found = re.search(r"(http://localhost:\d+/)\?token=([\w-]{40,})", child.stdout.readline())
        assert found
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(found[1])
        refused.value.close()
        other = subprocess.run(words, capture_output=True, text=True)
        assert other.returncode == 1 and "Another studio serves" in other.stderr
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(found[0]) as answer:
            page = answer.read().decode()
        assert "bird" in page and found[2] not in page
        child.send_signal(signal.SIGTERM)
        child.wait(30)
    finally:
        child.kill()
        child.communicate()


def test_a_port_in_use_is_told(tmp_path):
    server, address = serving.prepared(
        Places.at(str(tmp_path / "a")), host="127.0.0.1", port=0, token=TOKEN
    )
    port = int(re.findall(r":(\d+)/", address)[0])
    with pytest.raises(OSError, match=f"port {port} .*--port=0"):
        serving.prepared(Places.at(str(tmp_path / "b")), host="127.0.0.1", port=port, token=TOKEN)
    with pytest.raises(RefusedError, match="Another studio"):
        serving.prepared(Places.at(str(tmp_path / "a")), host="127.0.0.1", port=0, token=TOKEN)
    server._socket.close()


def test_another_address_wants_a_token_of_ones_own(capsys):
    with pytest.raises(SystemExit):
        command.parsed(["runs", "--host=0.0.0.0"])
    assert "starts commands for whoever knows the token" in capsys.readouterr().err
    assert command.parsed(["runs", "--host=0.0.0.0", f"--token={TOKEN}"]).token == TOKEN


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(command, "_NEEDED", ("no_such_package",))
    with pytest.raises(SystemExit, match=r"no_such_package.*dreambooth_jax\[studio\]"):
        command.main(["runs"])


def test_the_demonstration_is_a_finished_run_in_a_copy():
    places = Places.at(serving.demo())
    assert places.runs() == ["parrot"] and places.subjects() == ["parrot"]
    folder = places.run("parrot")
    state = runs.state(folder)
    assert state.name == "finished" and state.host == ""
    grids = runs.grids(folder)
    assert [grids[0].label, grids[-1].label] == ["before", "after"] and len(grids) > 3
    assert {"base/loss/subject", "upscaler/loss/subject"} <= runs.losses(folder).keys()
    shipped = Path(serving.__file__).parent.parent / "assets" / "studio_demo"
    assert not folder.samefile(shipped)
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) < 300_000
