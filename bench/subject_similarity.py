"""How well an encoder tells subjects apart, on the photos of the DreamBooth data set.

    python bench/subject_similarity.py FOLDER
    python bench/subject_similarity.py FOLDER --encoder dino_vits16 --weights facebook/dino-vits16

Mean cosine similarity of two photos of one subject, of two subjects of the same class, of two
classes, with bootstrap intervals over subjects; and how often the nearest other photo is of the
same subject. FOLDER is a copy of github.com/google/dreambooth, whole or in part.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from dreambooth_jax import sharding
from dreambooth_jax.data import benchmark, images
from dreambooth_jax.evaluate import encoders, measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", default="efficientnet_lite0", choices=encoders.KINDS)
    parser.add_argument("--weights", default="", help="file, folder or hub id of the encoder")
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()

    source = encoders.Source(args.weights, None, False, args.batch_size, sharding.make_mesh())
    (judge,) = encoders.open_all([args.encoder], {args.encoder: source})
    if not isinstance(judge, encoders.Features):
        parser.error(f"--encoder {args.encoder} gives distances; expected one that gives features")
    photos, names, classes = [], [], []
    for member, audit in benchmark.locate(args.folder).audits(size=32):
        photos += [images.read(photo.path) for photo in audit.kept]
        names += [member.name] * len(audit.kept)
        classes += [member.class_noun] * len(audit.kept)
    start = time.perf_counter()
    features = judge.images(photos, encoders.KINDS[args.encoder].title)
    seconds = time.perf_counter() - start
    similarity = measures.cosine(features, features)
    subject, kind = np.array(names), np.array(classes)
    same, alike = subject[:, None] == subject[None, :], kind[:, None] == kind[None, :]
    itself = np.eye(len(names), dtype=bool)

    print(
        f"\n{encoders.KINDS[args.encoder].title}: {len(names)} photos of {len(set(names))} "
        f"subjects of {len(set(classes))} classes in {seconds:.0f} s, compilation included"
    )
    print(f"{'two photos of':28}{'mean':>8}  {'95 % interval':16}{'pairs':>7}")
    bootstrap = measures.Bootstrap()
    for title, pairs in {
        "the same subject": same & ~itself,
        "another of the same class": alike & ~same,
        "another class": ~alike,
    }.items():
        if pairs.any():
            mean = bootstrap.masked(similarity, pairs, names)
            interval = f"{mean.low:.3f} to {mean.high:.3f}"
            print(f"{title:28}{mean.value:8.3f}  {interval:16}{mean.n:7d}")
    nearest = np.where(itself, -np.inf, similarity).argmax(1)
    hits = bootstrap.each((subject[nearest] == subject).astype(float), names)
    interval = f"{hits.low:.3f} to {hits.high:.3f}"
    print(f"{'nearest is the same subject':28}{hits.value:8.3f}  {interval:16}{hits.n:7d}")


if __name__ == "__main__":
    main()
