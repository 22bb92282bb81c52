r"""The benchmark's photos as a data set of TensorFlow Datasets, without TensorFlow.

    python -m dreambooth_jax.data.tfds_builder --data=dreambooth --out=tensorflow_datasets

    tfds.data_source("dreambooth", split="train", data_dir="tensorflow_datasets")  # either of
    tfds.builder_from_directory("tensorflow_datasets/dreambooth/1.0.0").as_data_source("train")

An example is one photo: upright sRGB pixels as a PNG file without any metadata, the same pixels
that a run sees. The prompts are in `builder.info.metadata`.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dreambooth_jax.data import benchmark, images


class Dreambooth(tfds.core.GeneratorBasedBuilder):
    """30 subjects in 15 classes, 4 to 6 photos each; `manual_dir` is a copy of the data set."""

    # Without it `python -m` would write "__main__" into dataset_info.json.
    __module__ = "dreambooth_jax.data.tfds_builder"
    # No checksums lie beside this file. The search for them needs importlib_resources, which
    # tensorflow-datasets 4.9.10 expects of etils, and etils 1.15 no longer brings along.
    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The subjects and photos of the published data set."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"git clone {benchmark.HOMEPAGE}; manual_dir is its folder."

    def _info(self) -> Any:
        """Features, and as metadata each class's kind and the two lists of prompts."""
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "subject": tfds.features.ClassLabel(names=list(benchmark.MEMBERS)),
            "class": tfds.features.ClassLabel(names=list(benchmark.CLASSES)),
            "live": tfds.features.Scalar(np.bool_),
            "file": tfds.features.Text(),
        }
        prompts = {member.prompt_set: list(member.prompts) for member in benchmark.MEMBERS.values()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="The photos and prompts of the DreamBooth benchmark, CC BY 4.0.",
            features=tfds.features.FeaturesDict(features),
            homepage=benchmark.HOMEPAGE,
            citation=benchmark.CITATION,
            metadata=tfds.core.MetadataDict(prompts),
            disable_shuffling=True,  # photos stay in the order of their subjects and names
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        """One split, "train", of all subjects that `manual_dir` has."""
        return {"train": self._generate_examples(benchmark.locate(dl_manager.manual_dir))}

    def _generate_examples(self, checkout: benchmark.Checkout) -> Iterator[tuple[int, Any]]:
        """Every photo that the audit keeps."""
        key = 0
        for member, audit in checkout.audits(size=1):
            if audit.skipped:
                print(f"{member.name}: {audit}")
            for photo in audit.kept:
                yield (
                    key,
                    {
                        "image": as_png(images.read(photo.path)),
                        "subject": member.name,
                        "class": member.class_noun,
                        "live": member.live,
                        "file": photo.path.name,
                    },
                )
                key += 1


def as_png(pixels: np.ndarray) -> bytes:
    """uint8 `[H,W,3]` as a PNG file that holds these pixels and nothing else."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=4)
    return file.getvalue()


def prepare(data: str | Path, out: str | Path) -> Any:
    """Writes the data set below `out`, unless it is there; returns its builder.

    Raises:
      AuditError: `data` is no copy of the benchmark, or a subject has no usable photo.
    """
    checkout = benchmark.locate(data)
    print(checkout)
    builder = Dreambooth(data_dir=str(out), file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=str(checkout.folder))
    builder.download_and_prepare(download_config=config)
    return builder


def main() -> None:
    """The command; see the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="copy of the data set, or its dataset/")
    parser.add_argument("--out", required=True, help="folder of data sets, as TFDS_DATA_DIR")
    given = parser.parse_args()
    try:
        builder = prepare(given.data, given.out)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    print(f"{builder.info.splits['train'].num_examples} photos in {builder.data_dir}")


if __name__ == "__main__":
    main()
