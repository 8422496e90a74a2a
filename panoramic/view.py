"""Which part of the jaws a picture shows."""

from enum import StrEnum


class View(StrEnum):
    """What a picture shows, and so which shape it has and which preprocessing it takes."""

    FULL = "full"
    """A whole panoramic radiograph, about 2.5 times as wide as high."""
    CROP = "crop"
    """A square below the mental foramen, 600 by 600 px in the published work."""
