"""The host's memory while a model is loaded: at most 1.3 times its weights.

    python bench/loading.py                  # about 120 M parameters, 0.5 GB
    python bench/loading.py --channels 320   # about 770 M parameters, 3 GB

Makes a base model of random weights in a temporary folder, then loads it in a fresh process as a
run does (`experiment.setup.load_stage`, every leaf straight to its place, split over 8 CPU devices)
and watches that process's own memory. Pages of the weight file itself are the file's, and
go when anybody needs the room; they are told apart.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def memory(name: str) -> int:
    """Bytes of this process by a name of /proc/self/status."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def load(folder: str) -> None:
    """Loads, and prints bytes: weights, the peak of anonymous memory, the peak of file pages."""
    import jax

    from dreambooth_jax import families, sharding, tree
    from dreambooth_jax.experiment.parts import loading as setup

    stage = families.open_stage(folder, kind="base")
    mesh = sharding.make_mesh(data=1, fsdp=8)
    rules = [(".*", "fsdp")]
    by_path = sharding.shardings(stage.abstract, rules=rules, mesh=mesh, min_bytes=1)
    before = {name: memory(name) for name in ("RssAnon", "RssFile")}
    peak, done = dict(before), threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name in peak:
                peak[name] = max(peak[name], memory(name))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    flat, _ = setup.load_stage(stage, by_path)
    jax.block_until_ready(flat)
    done.set()
    watcher.join()
    # Leaves that 8 does not divide lie on every device.
    held = sum(shard.data.nbytes for leaf in flat.values() for shard in leaf.addressable_shards)
    print(tree.nbytes(flat), held, *(peak[name] - before[name] for name in ("RssAnon", "RssFile")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=128, help="of the UNet's first level")
    parser.add_argument("--load", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.load)
        return
    sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))  # the maker of models
    import cascades

    width = args.channels
    config = {
        "block_out_channels": [width, 2 * width, 4 * width, 4 * width],
        "attention_head_dim": 64,
        "layers_per_block": 2,
        "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
        "norm_num_groups": 32,
        "sample_size": 64,
    }
    with tempfile.TemporaryDirectory() as root:
        folder = cascades.make(Path(root) / "model", "base", unet=config)
        command = [sys.executable, __file__, "--load", str(folder)]
        flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
        done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    weights, held, anonymous, pages = map(int, done.stdout.split()[-4:])
    print(f"weights, float32           {weights / 2**20:8.0f} MiB")
    print(f"on the devices, all copies {held / 2**20:8.0f} MiB")
    print(f"peak of own memory         {anonymous / 2**20:8.0f} MiB   ratio {anonymous / held:.2f}")
    print(f"peak of the file's pages   {pages / 2**20:8.0f} MiB")
    sys.exit(0 if anonymous <= 1.3 * held else 1)


if __name__ == "__main__":
    main()
