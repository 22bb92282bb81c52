"""The command `python -m dreambooth_jax.studio RUNS`."""

import argparse
import importlib.util
import secrets
import sys
import threading
import webbrowser
from collections.abc import Sequence

from dreambooth_jax import log_file
from dreambooth_jax.studio.guards import LOCAL
from dreambooth_jax.studio.places import Places, RefusedError

_NEEDED = ("starlette", "uvicorn", "python_multipart")
_OPEN_AFTER = 1.0  # seconds that the server takes to listen


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Returns the command line; ends the program with a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m dreambooth_jax.studio",
        description="A page to watch, start, stop and compare runs. It listens on this computer "
        "alone; from elsewhere use ssh -L 8765:localhost:8765 HOST.",
    )
    parser.add_argument("runs", nargs="?", default="runs", help="folder of runs, or gs://…")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--demo", action="store_true", help="show a finished run that is shipped, in a copy"
    )
    parser.add_argument("--host", default="127.0.0.1", help="another address wants --token")
    parser.add_argument("--token", default="", help="the secret of the page; a random one if empty")
    found = parser.parse_args(words)
    if found.host not in LOCAL and len(found.token) < 16:
        parser.error(
            f"--host={found.host} shows your photos and starts commands for whoever knows the "
            "token, unencrypted. Write --token=… of 16 characters or more if that is meant."
        )
    return found


def main(words: Sequence[str]) -> None:
    """Serves until it is interrupted."""
    log_file.escape_others()
    found = parsed(words)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"{', '.join(missing)}: not installed. Write pip install 'dreambooth_jax[studio]'."
        )
    from dreambooth_jax.studio import serving

    try:
        places = Places.at(serving.demo() if found.demo else found.runs)
        server, address = serving.prepared(
            places, host=found.host, port=found.port, token=found.token or secrets.token_urlsafe(32)
        )
    except (RefusedError, ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"{places.root}: open {address}\nCtrl-C ends the page, not the runs.", flush=True)
    if found.open:
        threading.Timer(_OPEN_AFTER, webbrowser.open, [address]).start()
    server.run()


if __name__ == "__main__":
    main(sys.argv[1:])
