"""The program that `panoramic.decoder` runs: takes files on standard input, gives pixels on standard output.

It ends at the end of its input, is killed by the kernel when its parent ends, ignores Ctrl-C, and leaves no core file,
since that would hold a patient's picture.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import BinaryIO

from panoramic.decoder import DEFAULT_MEMORY_BYTES, FRAME, frame
from panoramic.errors import ImageError
from panoramic.radiograph import Limits
from panoramic.view import View

#: prctl(2): which signal the kernel sends when the parent ends.
PR_SET_PDEATHSIG = 1


def confine(memory_bytes: int, parent_pid: int) -> None:
    """Give up what decoding does not need.

    Args:
        memory_bytes: Limit on the address space; macOS has none that holds.
        parent_pid: The process without which this one must not go on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _, hard_bytes = resource.getrlimit(resource.RLIMIT_AS)
        if hard_bytes != resource.RLIM_INFINITY:
            memory_bytes = min(memory_bytes, hard_bytes)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    if os.getppid() != parent_pid:
        sys.exit("The process that asked for this decoder has ended.")


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer one request after the other until the input ends."""
    # After the limits are set, so that they hold for the libraries too.
    from panoramic.image import read_radiograph

    answers.write(frame({"ready": True}))
    answers.flush()
    while lengths := requests.read(FRAME.size):
        header_bytes, body_bytes = FRAME.unpack(lengths)
        request = json.loads(requests.read(header_bytes))
        data = requests.read(body_bytes)
        try:
            radiograph = read_radiograph(data, view=View(request["view"]), limits=Limits(**request["limits"]))
        except ImageError as exc:
            answers.write(frame({"error": type(exc).__name__, "message": str(exc)}))
        else:
            header = {
                "shape": radiograph.pixels.shape,
                "format": radiograph.format,
                "bit_depth": radiograph.bit_depth,
                "warnings": radiograph.warnings,
            }
            answers.write(frame(header, radiograph.pixels.nbytes))
            answers.write(radiograph.pixels.data)
        answers.flush()


def main() -> None:
    """Serve the parent over standard input and output until either ends."""
    parser = argparse.ArgumentParser(prog="python -m panoramic.decoder_child", description=__doc__)
    parser.add_argument("memory_bytes", type=int, nargs="?", default=DEFAULT_MEMORY_BYTES)
    parser.add_argument("parent_pid", type=int, nargs="?", default=os.getppid())
    arguments = parser.parse_args()
    confine(arguments.memory_bytes, arguments.parent_pid)
    # Libraries print to standard output as well, which would break the frames.
    answers = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)
    with contextlib.suppress(BrokenPipeError), answers:
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
