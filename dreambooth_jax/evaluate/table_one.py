"""Table 1 of Ruiz et al. 2022 with our numbers below its own, where the encoders are the same."""

from collections.abc import Sequence

from dreambooth_jax.evaluate.scores import PHOTOS, TUNED, Score

# Column of the paper → measure and encoder. Which CLIP it means is not said; ViT-B/32 is that of
# Gal et al. 2022, from whom the measure is taken.
COLUMNS = {
    "DINO": ("subject_similarity", "dino_vits16"),
    "CLIP-I": ("subject_similarity", "clip_vitb32"),
    "CLIP-T": ("prompt_similarity", "clip_vitb32"),
}
PUBLISHED: dict[str, tuple[float | None, ...]] = {  # 30 subjects
    "Real images": (0.774, 0.885, None),
    "DreamBooth (Imagen)": (0.696, 0.812, 0.306),
    "DreamBooth (Stable Diffusion)": (0.668, 0.803, 0.305),
    "Textual Inversion (Stable Diffusion)": (0.569, 0.780, 0.255),
}


def as_text(overall: Sequence[Score], *, num_subjects: int) -> str:
    """The table, with a dash where no installed encoder measures, and the reason below it."""
    ours = {(s.measure, s.encoder, s.pictures): s for s in overall}
    rows = [("", *COLUMNS)]
    rows += [
        (name, *("n/a" if value is None else f"{value:.3f}" for value in values))
        for name, values in PUBLISHED.items()
    ]
    for title, pictures in (("photos", PHOTOS), ("pictures", TUNED)):
        cells = []
        for measure, encoder in COLUMNS.values():
            score = ours.get((measure, encoder, pictures))
            if pictures == PHOTOS and measure == "prompt_similarity":
                cells.append("n/a")
            elif score is None:
                cells.append("-")
            else:
                cells.append(f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})")
        rows.append((f"here, {title} of {num_subjects} subjects", *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    judged = {score.encoder for score in overall}
    absent = sorted({encoder for _, encoder in COLUMNS.values()} - judged)
    if absent:
        lines.append(
            f"-: not judged by {' and '.join(absent)}, and numbers of other encoders do not belong "
            "here; see evaluate.encoders."
        )
    return "\n".join(lines)
