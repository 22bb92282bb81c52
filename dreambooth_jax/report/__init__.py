"""The report of one run: a single HTML file that opens anywhere, without a network.

Sections are plain values; `build` lays them out in the page of `assets/report.html`, with every
picture inside the file and every text escaped.
"""

from dreambooth_jax.report.page import build, is_final, restate
from dreambooth_jax.report.sections import (
    Comparison,
    Curves,
    Gallery,
    Section,
    State,
    Table,
    Text,
    series,
)
from dreambooth_jax.report.sheet import sheet

__all__ = [
    "Comparison",
    "Curves",
    "Gallery",
    "Section",
    "State",
    "Table",
    "Text",
    "build",
    "is_final",
    "restate",
    "series",
    "sheet",
]
