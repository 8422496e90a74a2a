"""Every hostile file of the test material goes through a real node, which outlives them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from contract.errors import ErrorCode

HOSTILE = Path(__file__).parents[2].parent / "shared" / "data" / "badinput"

#: What a file of a stranger may be told. The other codes would be a fault of ours.
EXPECTED = {
    ErrorCode.IMAGE_UNREADABLE,
    ErrorCode.IMAGE_TOO_LARGE,
    ErrorCode.NOT_A_RADIOGRAPH,
}

#: What a node may take for one of them, waiting for its turn left out, in ms.
AT_MOST_MS = 30_000


def processes_that_stay(node: Any) -> set[int]:
    """All of the node's but the decoder, which may be replaced."""
    found = psutil.Process(node.process.pid).children(recursive=True)
    return {process.pid for process in found if "decoder_child" not in " ".join(process.cmdline())}


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs ../shared/data/badinput beside the repository")
def test_each_hostile_file_gets_a_result_and_the_node_goes_on(
    node: Any, phantom: Path, tmp_path: Path, measured: Callable[[str, str], None]
) -> None:
    files = sorted(path for path in HOSTILE.rglob("*") if path.is_file())
    assert len(files) > 50
    before = processes_that_stay(node)
    with node.client() as client:
        jobs = {
            client.submit({"img_path": str(path), "destination_path": str(tmp_path)}).job_id: path.name
            for path in [*files, phantom]
        }
        results = {jobs[result.job_id]: result for result in client.results(jobs, timeout_s=280)}
    assert len(results) == len(jobs)
    assert results[phantom.name].result == "ok"
    for name, result in results.items():
        assert result.timings_ms["engine"] < AT_MOST_MS, name
        assert result.attempts == 1, name
        if result.error is not None:
            assert result.error.code in EXPECTED, (name, result.error)
            assert len(result.error.message) > 30, name
        else:
            for path in (result.saliency_img_path, result.overlay_img_path):
                with Image.open(path) as picture:
                    picture.load()
    assert processes_that_stay(node) == before
    measured("hostile files tried; crashes of a node", f"{len(files)}; 0")
    accepted = sorted(name for name, result in results.items() if result.error is None)
    assert set(accepted) >= {"pano_16bit.png", "pano_cmyk.jpg", "pano_rgba.png", "pano_12in16bit.tif"}
    assert not any(
        name in accepted for name in ("chelsea.png", "noise.png", "all_black.png", "pano_truncated_half.png")
    )
