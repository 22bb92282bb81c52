"""What every test gets: 8 CPU devices, strict arithmetic, a compilation cache, repeatable numbers.

The environment is set before anything imports jax, so that worker processes of pytest-xdist and
programs started by a test inherit it.
"""

import ctypes
import gc
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"
_flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
# LLVM's optimizer is what the tests would wait for: their programs run for milliseconds. XLA's own
# rewriting and fusing of the program stays as users have it.
_flags += " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# XLA writes the loops of CPU programs in one of two ways; this one compiles in two thirds of the
# time. `commands` adds it to the programs that tests start.
_LOOPS = "--xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{_flags.strip()} {_LOOPS}"
# Adding [C] to [B, H, W, C] by accident is how a bias ends up on the wrong axis: write axes out.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# A second run finds its compiled programs here; `pytest --cache-clear` forgets them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(REPOSITORY / ".pytest_cache" / "d" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Nothing is downloaded in a test; a hub id that slips in fails at once instead of after a time-out.
os.environ["HF_HUB_OFFLINE"] = "1"
# gcsfs chooses on its import whether to speak gRPC as well, which the server of these tests does
# not: it would wait for an answer from Google for ever.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
# OpenMP's threads, PyTorch's here, wait for each other by spinning: two workers of two threads each
# took twice the time on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
# The C library keeps what threads freed, an arena for each; workers grew to gigabytes by it.
os.environ["MALLOC_ARENA_MAX"] = "2"

import hypothesis  # noqa: E402 (the environment above must come first)
import jax  # noqa: E402 (same)
import numpy as np  # noqa: E402 (same)
import pytest  # noqa: E402 (same)

jax.devices()  # reads the flags
os.environ["XLA_FLAGS"] = _flags.strip()  # libtpu ends a process that has flags it does not know
_C = ctypes.CDLL(None)

hypothesis.settings.register_profile(
    "house",
    deadline=None,  # the first example of a test compiles, the others do not
    derandomize=True,  # a test that failed fails again until its fault is fixed
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests that load other devices' compilers last.

    Half a GiB of each stays in the process, on top of what whole runs take.
    """
    items.sort(key=lambda item: item.get_closest_marker("compilers") is not None)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Each worker takes a run of files, then half of what another one has left.

    Tests of a file share fixtures and compiled programs, which only last within a process.
    """
    if config.getoption("dist") != "load":  # asked for on the command line
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def _memory_of_a_file() -> Iterator[None]:
    """Frees the compiled programs of a file after its last test: a worker runs a hundred files."""
    yield
    jax.clear_caches()
    gc.collect()
    _give_back()


@pytest.fixture(autouse=True)
def _memory_of_a_test() -> Iterator[None]:
    """Gives back what a compiler has freed: half a GiB after a whole run."""
    began = time.monotonic()
    yield
    if time.monotonic() - began > 5:
        _give_back()


def _give_back() -> None:
    if hasattr(_C, "malloc_trim"):  # of glibc: gives free memory back to the system
        _C.malloc_trim(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator, the same for every test and every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree: configs/, dreambooth_jax/, tests/."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data beside a developer's clone: DreamBooth photos, tokenizers."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "needs ../shared/data (DreamBooth photos, tokenizers), absent beside this clone"
        )
    return folder


@pytest.fixture(scope="session")
def tiny_cascade(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny random cascade by stage: 8² "base", 16² "upscaler" (tests/cascades.py)."""
    import cascades

    root = tmp_path_factory.mktemp("cascade")
    seeds = {"base": 0, "upscaler": 1}
    return {kind: cascades.make(root / kind, kind, seed=seed) for kind, seed in seeds.items()}
