"""Temperature scaling: one number that makes probabilities neither too sure nor too modest, and moves no ranking.

Guo et al. 2017, arXiv:1706.04599, section 4.2: with z the logits of a picture and T the temperature, the probabilities
are softmax(z / T); T minimises the negative log-likelihood (NLL) of pictures that had no part in the weights. Softmax
does not see a shift of all logits, so log p of stored probabilities serves as z.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax

from training.errors import RunError

Floats = NDArray[np.float64]

#: Between these the temperature is sought. Networks that fit their training set too well need 1 to 3 (Guo et al.).
BOUNDS: Final = (0.2, 10.0)

#: Probabilities are taken to be at least this: below, single precision has none, and one picture would rule them all.
_SMALLEST: Final = 1e-40


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: Logits are divided by it; more than 1 makes the probabilities more modest.
        nll_before: Mean NLL of the pictures it was fitted on, in nats, as they came.
        nll_after: The same with the temperature.
        pictures: How many it was fitted on.
        remark: What a reader should know of the fit; empty where all is as it should be.
    """

    value: float
    nll_before: float
    nll_after: float
    pictures: int
    remark: str = ""


def fit_temperature(probabilities: Floats, truths: NDArray[np.int64]) -> Temperature:
    """Find the temperature with the lowest NLL.

    Where every picture's true class has the largest probability, the NLL falls without end as the temperature does, so
    that such pictures cannot say how sure the network may be: the temperature then stays 1.

    Args:
        probabilities: (N, C) of validation pictures; never of pictures that the network is judged on.
        truths: (N,) class indices.

    Raises:
        RunError: There are no pictures.
    """
    if not len(truths):
        raise RunError("there are no validation predictions to fit a temperature on; name a finished run")
    logits = _logits(probabilities)
    own = logits[np.arange(len(truths)), truths]  # (N,)
    before = _nll(probabilities, truths)
    if bool((own >= logits.max(axis=1)).all()):
        remark = (
            "Every validation picture was most probably of its true class, so that the likelihood names no "
            "temperature; it was left at 1."
        )
        return Temperature(1.0, before, before, len(truths), remark)
    # The NLL is convex in 1/T, so it has one minimum in log T too, where the search is even-handed.
    found = minimize_scalar(
        lambda log_t: _nll(scale(probabilities, float(np.exp(log_t))), truths),
        bounds=tuple(np.log(BOUNDS)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    value = float(np.exp(found.x))
    at_bound = next((bound for bound in BOUNDS if np.isclose(value, bound, rtol=1e-3)), None)
    if at_bound is not None:
        value = at_bound
    remark = "" if at_bound is None else f"The temperature is at the end of the range {BOUNDS[0]:g} to {BOUNDS[1]:g}."
    return Temperature(value, before, _nll(scale(probabilities, value), truths), len(truths), remark)


def scale(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities with the logits divided by a temperature.

    Args:
        probabilities: (N, C).
        temperature: More than 0; 1 changes nothing.
    """
    scaled: Floats = softmax(_logits(probabilities) / temperature, axis=1)
    return scaled


def scale_threshold(threshold: float, temperature: float) -> float:
    """The threshold that decides of two classes' scaled probabilities as this one does of those unscaled.

    Both are monotonic in the same difference of two logits. With more classes there is no such threshold: which
    pictures reach it then depends on how the rest of the probability is divided; choose anew on scaled predictions.

    Args:
        threshold: 0 to 1.
        temperature: More than 0.
    """
    return float(expit(logit(threshold) / temperature))


def _logits(probabilities: Floats) -> Floats:
    floored: Floats = np.log(np.maximum(probabilities, _SMALLEST))
    return floored


def _nll(probabilities: Floats, truths: NDArray[np.int64]) -> float:
    own = probabilities[np.arange(len(truths)), truths]
    return float(-_logits(own).mean())
