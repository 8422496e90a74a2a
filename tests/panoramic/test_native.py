"""Our own kernels against PyTorch: every size, every number of threads, the same bits every time."""

import signal
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import repeat

import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet

from bench.untrained import untrained_network
from panoramic.native.network import NativeNetwork
from panoramic.native.plan import Plan, aligned, plan
from panoramic.native.steps import COUNTER_DISTANCE, run
from panoramic.native.tiles import LANES
from panoramic.network import build, fuse_for_inference

pytestmark = pytest.mark.skipif(LANES == 0, reason="needs Linux and a processor with AVX-512, or AVX2 and FMA")


@pytest.fixture(scope="module")
def net() -> EfficientNet:
    return untrained_network()


@pytest.fixture(scope="module")
def other() -> EfficientNet:
    """Of the same kind with other activations."""
    other = untrained_network()
    with torch.no_grad():
        norm = other.get_submodule("_bn1")
        norm.get_parameter("weight").copy_(0.7 * norm.get_parameter("weight").roll(1))
    return other


def planned(net: EfficientNet, *, size: tuple[int, int], threads: int) -> Plan:
    return plan(fuse_for_inference(deepcopy(net)), input_size=size, threads=threads)


def channels(net: EfficientNet) -> int:
    return net.get_parameter("_fc.weight").shape[1]


def native(*nets: EfficientNet, size: tuple[int, int], threads: int) -> NativeNetwork:
    return NativeNetwork([planned(net, size=size, threads=threads) for net in nets], threads=threads)


def picture(size: tuple[int, int], seed: int = 5) -> np.ndarray:
    noise = torch.randn(1, 3, 9, 13, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=size, mode="bilinear")[0].numpy()


def assert_pytorchs(found: np.ndarray, nets: Sequence[EfficientNet], x: np.ndarray) -> None:
    with torch.inference_mode():
        expected = [net.extract_features(torch.from_numpy(x)[None])[0].permute(1, 2, 0).numpy() for net in nets]
    assert found.dtype == np.float32
    assert found.shape[2] == sum(map(channels, nets))
    for part, own in zip(np.split(found, np.cumsum(list(map(channels, nets)))[:-1], axis=2), expected, strict=True):
        assert own.std() > 0.01, "an activation that is the same everywhere would test little"
        np.testing.assert_allclose(part, own, rtol=0, atol=2e-4 * np.abs(own).max())


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (64, 500), (97, 211), (64, 4096), (224, 224), (449, 954)])
@pytest.mark.parametrize("threads", [1, 3])
def test_pytorchs_activation(net: EfficientNet, size: tuple[int, int], threads: int) -> None:
    x = picture(size)

    assert_pytorchs(native(net, size=size, threads=threads).activation(x), [net], x)


def test_a_wide_kernel_that_begins_two_pixels_outside() -> None:
    """With a stride of 2, which b0 does not have."""
    b2, x = untrained_network("efficientnet-b2"), picture((97, 211))
    wide = [each for each in planned(b2, size=(97, 211), threads=1).steps if each["kernel"] == 5]
    assert [step for step in wide if step["stride"] == 2 and step["left"] == 2]

    assert_pytorchs(native(b2, size=(97, 211), threads=3).activation(x), [b2], x)


def test_members_of_an_ensemble_one_behind_the_other(net: EfficientNet, other: EfficientNet) -> None:
    x = picture((97, 211))

    assert_pytorchs(native(other, net, size=(97, 211), threads=2).activation(x), [other, net], x)


def test_the_same_bits_every_time_whoever_asks(net: EfficientNet) -> None:
    size = (97, 211)
    networks = [native(net, size=size, threads=3) for _ in range(2)]
    pictures = [picture(size, seed) for seed in range(4)]
    alone = [networks[0].activation(x) for x in pictures]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: networks[number % 3 % 2].activation(pictures[number % 4]), range(24)))

    for number, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[number % 4])
    assert not np.array_equal(alone[0], alone[1])


def test_a_time_limit_leaves_the_next_picture_alone(net: EfficientNet) -> None:
    class TimeLimitError(Exception):
        pass

    def interrupt(_number: int, _frame: object) -> None:
        raise TimeLimitError

    size = (449, 954)
    network = native(net, size=size, threads=2)
    expected = network.activation(picture(size, 1))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay_s in (0.003, 0.01, 0.02):
            signal.setitimer(signal.ITIMER_REAL, delay_s)
            with pytest.raises(TimeLimitError):
                deque(map(network.activation, repeat(picture(size, 2))), maxlen=0)

            np.testing.assert_array_equal(network.activation(picture(size, 1)), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("size", [(33, 47), (64, 1300)])
def test_nothing_is_written_beyond_or_read_before_it_is_written(net: EfficientNet, size: tuple[int, int]) -> None:
    planned_ = planned(net, size=size, threads=7)
    room = 4096
    memory, scratch = aligned(planned_.memory_size + 2 * room), aligned(planned_.scratch_size + 2 * room)
    memory[:] = scratch[:] = np.nan
    counters = np.zeros((len(planned_.steps), 2, COUNTER_DISTANCE), np.int64)

    inner = memory[room:-room]
    run(planned_.steps, planned_.weights, inner, picture(size), counters, scratch[room:-room])

    begin, height, width, channels_ = planned_.activation
    assert np.isfinite(inner[begin : begin + height * width * channels_]).all()
    for buffer in (memory, scratch):
        assert np.isnan(buffer[:room]).all()
        assert np.isnan(buffer[-room:]).all()


def test_a_thread_that_comes_late_finds_nothing_to_do(net: EfficientNet) -> None:
    planned_ = planned(net, size=(64, 64), threads=2)
    memory = aligned(planned_.memory_size)
    counters = np.zeros((len(planned_.steps), 2, COUNTER_DISTANCE), np.int64)
    x = picture((64, 64))
    run(planned_.steps, planned_.weights, memory, x, counters, aligned(planned_.scratch_size))
    assert memory.any()
    memory[:] = 7

    run(planned_.steps, planned_.weights, memory, x, counters, aligned(planned_.scratch_size))

    assert (memory == 7).all()


def test_silu_from_far_below_to_far_above() -> None:
    """Through the whole way: a network whose every weight is zero but the last bias puts out silu of that."""
    zero = build("efficientnet-b0", outputs=2).eval()
    with torch.no_grad():
        for parameter in zero.parameters():
            parameter.zero_()
        wanted = torch.linspace(-86, 86, 1280, dtype=torch.float64)
        wanted[:3] = torch.tensor([-1e20, -200.0, 1e20])
        zero._bn1.bias.copy_(wanted)
    network = NativeNetwork([plan(fuse_for_inference(zero), input_size=(32, 32), threads=1)], threads=1)

    found = network.activation(picture((32, 32)))[0, 0]

    rounded = wanted.float().double()
    expected = (rounded * torch.sigmoid(rounded)).numpy()
    np.testing.assert_allclose(found[2:], expected[2:], rtol=5e-6, atol=0)
    np.testing.assert_allclose(found[wanted.numpy() > -10], expected[wanted.numpy() > -10], rtol=1e-6, atol=0)
    np.testing.assert_allclose(found[:2], 0, atol=1e-17)
