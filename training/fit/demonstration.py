"""What a model that was trained on phantoms says of itself, in its manifest and so in every result."""

from typing import Final

from panoramic.manifest import RESEARCH_USE

#: The code that every result of such a model carries.
DEMONSTRATION_NOTICE: Final = "demonstration_model"

DEMONSTRATION_USE: Final = (
    "For demonstration only: trained on phantoms, synthetic pictures that show no patient. What it says of a patient's "
    f"radiograph means nothing; never use it clinically. {RESEARCH_USE}"
)
