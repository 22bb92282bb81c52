"""TPU chips on the bus of this computer."""

from pathlib import Path

import pytest

from dreambooth_jax import chips


@pytest.mark.parametrize(
    ("devices", "count"),
    [
        ([("0x1ae0", "0x0063"), ("0x1ae0", "0x0063")], 2),  # v5e
        ([("0x1ae0", "0x0042")], 0),  # the network card of the same vendor
        ([("0x8086", "0x0063")], 0),
        ([], 0),
    ],
)
def test_tpus_are_known_by_vendor_and_device(devices, count, tmp_path: Path) -> None:
    for k, (vendor, device) in enumerate(devices):
        folder = tmp_path / f"0000:00:0{k}.0"
        folder.mkdir()
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "device").write_text(f"{device}\n")
    (tmp_path / "0000:00:09.0").mkdir()  # nothing can be read there
    assert chips.tpus_here(tmp_path) == count
    assert chips.tpus_here(tmp_path / "no bus") == 0
