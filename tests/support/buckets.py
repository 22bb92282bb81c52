"""A bucket of Google Cloud Storage on this computer, for tests of `gs://…`. Not a test."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from unittest import mock

import commands

from dreambooth_jax import files

NAME = "bucket"
# The emulator does not say which generation of an object it gives, which TensorStore asks of it.
_SERVE = """
import sys
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

plainly = objects.download

def download(request, response, storage, *args, **kwargs):
    plainly(request, response, storage, *args, **kwargs)
    names = request.params["bucket_name"], request.params["object_id"]
    if response.status < 300:
        response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]

objects.download = download
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
"""


@contextlib.contextmanager
def emulated() -> Iterator[str]:
    """`gs://bucket`, empty, for this process and those that it starts."""
    address = f"127.0.0.1:{commands.free_port()}"
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, address.rpartition(":")[2], NAME],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    changed = {
        "STORAGE_EMULATOR_HOST": f"http://{address}",  # gcsfs asks there
        "TENSORSTORE_GCS_HTTP_URL": f"http://{address}",  # and so do checkpoints' arrays
    }
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://{address}/storage/v1/b/{NAME}").close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        with mock.patch.dict(os.environ, changed):
            yield f"gs://{NAME}"
    finally:
        server.kill()
        server.wait()


def contents(address: str) -> dict[str, bytes]:
    """Every file below an address, by its path from there."""
    import gcsfs

    system = gcsfs.GCSFileSystem(token="anon", use_listings_cache=False)
    start = PurePosixPath(address.removeprefix("gs://"))
    return {
        str(PurePosixPath(name).relative_to(start)): system.cat_file(name)
        for name in system.find(str(start))
    }


def break_off(file: Path) -> None:
    """Writes half of it, then fails."""
    with files.written(file) as part:
        part.write_text("half")
        raise KeyError
