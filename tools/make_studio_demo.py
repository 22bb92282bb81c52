"""Makes the run that `python -m dreambooth_jax.studio --demo` shows, from a finished run.

    python -m dreambooth_jax.main --config=configs/imagen_like.py --workdir=runs/bird
    python tools/make_studio_demo.py runs/bird

Its records and the pictures of four prompts go to dreambooth_jax/assets/studio_demo/.
"""

import re
import shutil
import sys
from pathlib import Path

PLACE = Path(__file__).parent.parent / "dreambooth_jax" / "assets" / "studio_demo"
RECORDS = (
    "config.json", "subjects.json", "metrics.jsonl", "timings.json", "advice.json", "status.json",
)  # fmt: skip
PROMPTS = 4  # of the run's, the first ones
MOST = 300_000  # bytes


def made(run: Path, place: Path = PLACE) -> int:
    """Copies what the page shows; returns its bytes."""
    missing = [name for name in RECORDS if not (run / name).is_file()]
    if missing:
        sys.exit(f"{run} lacks {', '.join(missing)}; expected a finished run.")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in RECORDS:
        text = (run / name).read_text(encoding="utf-8")
        if name == "status.json":  # nobody's process or computer
            text = re.sub(r'"pid": \d+', '"pid": 0', text)
            text = re.sub(r'"host": "[^"]*"', '"host": ""', text)
        (place / name).write_text(text, encoding="utf-8")
    for grid in sorted(run.glob("samples/*")):
        for k in range(PROMPTS):
            file = grid / f"{k:02d}_00.png"
            if re.fullmatch(r"before|after|(base|upscaler)-\d+", grid.name) and file.is_file():
                (place / "samples" / grid.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place / "samples" / grid.name / file.name)
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


if __name__ == "__main__":
    size = made(Path(sys.argv[1]))
    print(f"{PLACE}: {size} bytes")
    if size > MOST:
        sys.exit(f"more than {MOST} bytes: take fewer prompts")
