"""What a network starts from: random weights, those of a file, or those that the library offers for download."""

import hashlib
import sys
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map

from panoramic.errors import ModelFileError
from panoramic.model_file import digest_of, load_model
from panoramic.network import build, check_tensors, network_of
from panoramic.view import View
from training.errors import RunError
from training.fit.config import IMAGENET_WEIGHTS, NO_WEIGHTS

_COUNTER: Final = "num_batches_tracked"
_HEAD: Final = ("_fc.weight", "_fc.bias")


@dataclass(frozen=True, eq=False)
class StartingWeights:
    """Where training begins.

    Attributes:
        origin: For the record: "none (random)", "imagenet" with the file's name, or the file's path as it was given
            with the model's name and version.
        sha256: Of the tensors (`panoramic.model_file.digest_of`); empty for random ones.
        trained_on: Digests of the pictures that had a part in them, as far as that is known.
        history_known: Whether no other radiograph had. ImageNet's pictures are none.
        state_dict: The tensors; empty for random ones.
        head: How many outputs they have; 0 for random ones.
    """

    origin: str
    sha256: str = ""
    trained_on: tuple[str, ...] = ()
    history_known: bool = True
    state_dict: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    head: int = 0

    def build(self, network: str, *, outputs: int, seed: int, stream: int) -> EfficientNet:
        """A network that begins with these weights; what they do not have is drawn from (seed, stream).

        The last layer is kept if it has as many outputs as asked for, else drawn anew: outputs of another number
        answer another question.

        Args:
            network: One of `panoramic.network.NETWORKS`, of which the weights are.
            outputs: Number of classes.
            seed: Of the run.
            stream: Keeps the random numbers of one fold from those of another.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"weights/{seed}/{stream}".encode()).digest()[:8]) >> 1)
            net = build(network, outputs=outputs)
        kept = {name: t for name, t in self.state_dict.items() if name not in _HEAD or self.head == outputs}
        net.load_state_dict({**net.state_dict(), **kept})
        return net


def starting_weights(text: str, *, network: str, view: View) -> StartingWeights:
    """Read or download what ``--weights`` names.

    Args:
        text: ``none``, ``imagenet``, or the path of a .pth or .safetensors file.
        network: The network that is to be trained.
        view: What its pictures show.

    Raises:
        RunError: The file cannot be used or is of another network, or the download failed.
    """
    if text == NO_WEIGHTS:
        return StartingWeights("none (random)")
    if text == IMAGENET_WEIGHTS:
        return _download(network)
    path = Path(text)
    try:
        model = load_model(path, view=view)
    except ModelFileError as exc:
        raise RunError(f"the starting weights {text} cannot be used: {exc}. Or give --weights none") from exc
    manifest = model.manifest
    if manifest.members > 1:
        raise RunError(
            f"the starting weights {text} are an ensemble of {manifest.members} networks, and one is to be trained: "
            "give one of its members"
        )
    if manifest.network != network:
        raise RunError(
            f"the starting weights {text} are of {manifest.network}, and {network} is to be trained: give --network "
            f"{manifest.network}, or weights of {network}"
        )
    origin = f"{text} ({manifest.name} {manifest.version})"
    return StartingWeights(
        origin,
        manifest.sha256,
        manifest.trained_on,
        history_known=manifest.training_known,
        state_dict=model.state_dict,
        head=manifest.outputs,
    )


def refuse_seen_pictures(weights: StartingWeights, digests: Collection[str]) -> None:
    """Make sure that no picture is judged by a network whose starting weights had already seen it.

    Args:
        weights: To start from.
        digests: Of the data set's pictures.

    Raises:
        RunError: Some were seen.
    """
    seen = len(set(weights.trained_on) & set(digests))
    if seen:
        raise RunError(
            f"the starting weights {weights.origin} were trained on {seen} of this data set's {len(set(digests))} "
            "pictures, so every fold would be judged on pictures already seen: start from other weights, or take those "
            "pictures out"
        )


def _download(network: str) -> StartingWeights:
    """The library's own weights; kept by PyTorch for the next time, checked against the digest in their name.

    The library's function would unpickle whatever it got, and print; so only its list of addresses is used.
    """
    url = url_map[network]
    try:
        # What it says of the download is no result.
        with redirect_stdout(sys.stderr):
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        # Counters of batches, which files of PyTorch before 0.4.1 lack; a rate of forgetting makes them meaningless.
        with torch.device("meta"):
            expected = build(network, outputs=1).state_dict()
        state |= {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith(_COUNTER)} | state
        found = network_of(state)
        check_tensors(state)
    except OSError as exc:
        reason = getattr(exc, "reason", None) or exc.strerror or exc
        raise RunError(
            f"the ImageNet weights of {network} could not be downloaded from {url} ({reason}): connect to a network "
            "once, or fetch that file elsewhere and give it as --weights FILE, or give --weights none"
        ) from exc
    except Exception as exc:  # a damaged download may cause any
        raise RunError(
            f"the ImageNet weights of {network} from {url} are damaged: remove the file from {torch.hub.get_dir()} and "
            "try again"
        ) from exc
    if found != network:
        raise RunError(f"{url} holds weights of {found}, not of {network}: give --weights FILE")
    return StartingWeights(
        f"imagenet ({url.rpartition('/')[2]})",
        digest_of(state),
        state_dict=state,
        head=state["_fc.bias"].shape[0],
    )
