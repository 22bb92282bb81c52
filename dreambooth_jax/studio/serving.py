"""The server of one studio: one for a folder of runs, on one port."""

import atexit
import shutil
import socket
import tempfile
from pathlib import Path

import filelock
import uvicorn

from dreambooth_jax.studio.answers import Studio
from dreambooth_jax.studio.guards import LOCAL
from dreambooth_jax.studio.places import Places, RefusedError
from dreambooth_jax.studio.server import application

_ASSETS = Path(__file__).parent.parent / "assets"


def demo() -> str:
    """Returns a new folder of runs with the shipped one and its photos, until the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="studio-demo-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(_ASSETS / "studio_demo", folder / "parrot")
    photos = folder / "photos" / "parrot"
    photos.mkdir(parents=True)
    for photo in sorted((_ASSETS / "subject").glob("*.png")):
        shutil.copy(photo, photos / photo.name)
    return str(folder)


class Server:
    """Serves on a socket that listens already, until it is interrupted."""

    def __init__(self, server: uvicorn.Server, listening: socket.socket, claim: object) -> None:
        self._server, self._socket, self._claim = server, listening, claim

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM."""
        self._server.run(sockets=[self._socket])


def prepared(places: Places, *, host: str, port: int, token: str) -> tuple[Server, str]:
    """Returns a server that listens, and the address to open.

    Raises:
      RefusedError: another studio serves these runs.
      OSError: the port is in use.
    """
    places.state.mkdir(parents=True, exist_ok=True)
    claim = filelock.FileLock(places.state / "studio.lock")
    try:
        claim.acquire(timeout=0)
    except filelock.Timeout:
        raise RefusedError(
            f"Another studio serves {places.root}. Open its address, or end it first."
        ) from None
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen()
    except OSError as error:
        listening.close()
        claim.release()
        raise OSError(
            f"port {port} of {host}: {error.strerror}. Write --port=0 to take a free one."
        ) from error
    port = listening.getsockname()[1]
    app = application(Studio.over(places), token=token, hosts={*LOCAL, host})
    settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    name = "localhost" if host == "127.0.0.1" else host
    return Server(
        uvicorn.Server(settings), listening, claim
    ), f"http://{name}:{port}/?token={token}"
