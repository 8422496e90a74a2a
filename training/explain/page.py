"""The page: all cases in one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import cv2
from jinja2 import Environment, PackageLoader, StrictUndefined

from panoramic.classification import METHOD
from panoramic.manifest import RESEARCH_USE
from panoramic.overlay import notices_of
from training.explain.cortex_share import MARGIN_MM, summarise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from training.explain.cases import Heatmaps

#: JPEG quality of the embedded pictures: a page of 20 cases has about 2 MB.
QUALITY = 85


def page_html(heatmaps: Heatmaps) -> str:
    """Write the page."""
    environment = Environment(
        loader=PackageLoader("training.explain", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded
    environment.filters["words"] = lambda code: code.replace("_", " ")
    shares = heatmaps.cortex()
    regions = (
        [
            ("Inferior cortex itself", summarise([one.cortex for one in shares])),
            (f"Cortex and {MARGIN_MM:g} mm around it", summarise([one.near for one in shares])),
        ]
        if shares
        else []
    )
    return environment.get_template("heatmaps.html.jinja").render(
        heatmaps=heatmaps,
        manifest=heatmaps.manifest,
        notices=notices_of(heatmaps.manifest),
        method=METHOD,
        layer=heatmaps.cases[0].classification.layer,
        grid=heatmaps.cases[0].classification.cam.shape,
        regions=regions,
        with_shares=len(shares),
        margin_mm=MARGIN_MM,
        research_use=RESEARCH_USE,
    )


def embedded(picture: NDArray[np.uint8]) -> str:
    """A picture (h, w, 3), RGB, as a data URL."""
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
