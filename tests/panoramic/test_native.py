"""Our own kernels against PyTorch: every size, every number of threads, the same bits every time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet

from bench.untrained import untrained_network
from panoramic.native.network import NativeNetwork
from panoramic.native.plan import aligned, plan
from panoramic.native.steps import run
from panoramic.network import build, fuse_for_inference


@pytest.fixture(scope="module")
def net() -> EfficientNet:
    return untrained_network()


def native(net: EfficientNet, *, size: tuple[int, int], threads: int) -> NativeNetwork:
    fresh = build("efficientnet-b0", outputs=2).eval()
    fresh.load_state_dict(net.state_dict())
    return NativeNetwork(plan(fuse_for_inference(fresh), input_size=size, threads=threads), threads=threads)


def picture(size: tuple[int, int], seed: int = 5) -> np.ndarray:
    noise = torch.randn(1, 3, 9, 13, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=size, mode="bilinear")[0].numpy()


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (64, 500), (97, 211), (224, 224), (449, 954)])
@pytest.mark.parametrize("threads", [1, 3])
def test_pytorchs_activation(net: EfficientNet, size: tuple[int, int], threads: int) -> None:
    x = picture(size)
    with torch.inference_mode():
        expected = net.extract_features(torch.from_numpy(x)[None])[0].permute(1, 2, 0).numpy()

    found = native(net, size=size, threads=threads).activation(x)

    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert expected.std() > 0.01, "an activation that is the same everywhere would test little"
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_the_same_bits_every_time_whoever_asks(net: EfficientNet) -> None:
    size = (97, 211)
    network = native(net, size=size, threads=3)
    pictures = [picture(size, seed) for seed in range(4)]
    alone = [network.activation(x) for x in pictures]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(network.activation, pictures * 5))

    for number, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[number % 4])
    assert not np.array_equal(alone[0], alone[1])


def test_a_thread_that_comes_late_finds_nothing_to_do(net: EfficientNet) -> None:
    planned = plan(fuse_for_inference(untrained_network()), input_size=(64, 64), threads=2)
    memory, counters = aligned(planned.memory_size), np.zeros((len(planned.steps), 2, 8), np.int64)
    x = picture((64, 64))
    run(planned.steps, planned.weights, memory, x, counters, aligned(planned.scratch_size))
    before = memory.copy()

    run(planned.steps, planned.weights, memory, x, counters, aligned(planned.scratch_size))

    np.testing.assert_array_equal(memory, before)


def test_silu_from_far_below_to_far_above() -> None:
    """Through the whole way: a network whose every weight is zero but the last bias puts out silu of that."""
    zero = build("efficientnet-b0", outputs=2).eval()
    with torch.no_grad():
        for parameter in zero.parameters():
            parameter.zero_()
        wanted = torch.linspace(-60, 60, 1280, dtype=torch.float64)
        zero._bn1.bias.copy_(wanted)
    network = NativeNetwork(plan(fuse_for_inference(zero), input_size=(32, 32), threads=1), threads=1)

    found = network.activation(picture((32, 32)))[0, 0]

    expected = (wanted.float().double() * torch.sigmoid(wanted.float().double())).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-16)
