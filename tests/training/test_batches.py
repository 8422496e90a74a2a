"""Batches: the worker's numbers where nothing is altered, and the same numbers whatever the workers and the resumes."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from panoramic.image import load_radiograph
from panoramic.preprocess import prepare
from panoramic.view import View
from training.data.augment import Augmentation
from training.data.batches import EpochSampler, PictureDataset, loader
from training.data.cache import PictureCache, Prepared
from training.data.dataset import Picture
from training.phantoms.phantom import draw_phantom, draw_truth

SIZE = (45, 96)
LABELS = [0, 1, 1, 0, 1]


@pytest.fixture(scope="module")
def prepared_cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[PictureCache, list[Prepared]]:
    folder = tmp_path_factory.mktemp("batches")
    for seed in range(len(LABELS)):
        pixels = draw_phantom(draw_truth(seed, "C1", size_px=(121 + seed, 292)))
        cv2.imwrite(str(folder / f"{seed}.png"), pixels)
    cache = PictureCache(folder / "cache", view=View.FULL, input_size=SIZE)
    pictures = [Picture(path, path.name, 0, path.stem) for path in sorted(folder.glob("*.png"))]
    return cache, cache.prepare(pictures, processes=1)


def dataset(prepared_cache: tuple[PictureCache, list[Prepared]], kind: Augmentation, seed: int = 5) -> PictureDataset:
    return PictureDataset(*prepared_cache, LABELS, augmentation=kind, seed=seed)


def numbers(data: PictureDataset) -> torch.Tensor:
    return torch.stack([data[index][0] for index in range(len(data))])


def test_an_unaltered_picture_has_the_workers_bits(prepared_cache: tuple[PictureCache, list[Prepared]]) -> None:
    data = dataset(prepared_cache, Augmentation.NONE)

    assert len(data) == len(LABELS)
    for index, entry in enumerate(prepared_cache[1]):
        tensor, label, place = data[index]
        expected = prepare(load_radiograph(entry.picture.path).pixels, input_size=SIZE)
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(tensor.numpy().view(np.uint32), expected.view(np.uint32))
        assert (label, place) == (LABELS[index], index)


def test_alterations_depend_on_seed_epoch_and_index_alone(
    prepared_cache: tuple[PictureCache, list[Prepared]],
) -> None:
    data = dataset(prepared_cache, Augmentation.ON_THE_FLY)
    first = numbers(data)
    data.set_epoch(1)
    second = numbers(data)
    same_picture_twice = PictureDataset(
        prepared_cache[0], prepared_cache[1][:1] * 2, [0, 0], augmentation=Augmentation.ON_THE_FLY, seed=5
    )

    assert not torch.equal(first, second)
    assert not torch.equal(same_picture_twice[0][0], same_picture_twice[1][0])
    assert not torch.equal(numbers(dataset(prepared_cache, Augmentation.ON_THE_FLY, seed=6)), first)
    again = dataset(prepared_cache, Augmentation.ON_THE_FLY)
    assert torch.equal(torch.stack([again[index][0] for index in reversed(range(5))]).flip(0), first)
    assert torch.equal(torch.stack([again[index, 1][0] for index in range(5)]), second)


def test_the_predecessors_doubling_is_drawn_once_from_the_seed(
    prepared_cache: tuple[PictureCache, list[Prepared]],
) -> None:
    plain = numbers(dataset(prepared_cache, Augmentation.NONE))
    data = dataset(prepared_cache, Augmentation.PREDECESSOR)
    doubled = numbers(data)
    data.set_epoch(3)

    assert torch.equal(numbers(data), doubled), "the same in every epoch"
    assert torch.equal(doubled[:5], plain)
    assert [data[index][1:] for index in range(10)] == [(label, place) for place, label in enumerate(LABELS)] * 2
    flipped = [torch.equal(copy, original.flip(1)) for copy, original in zip(doubled[5:], plain, strict=True)]
    assert sum(flipped) == 2, "half of five, rounded down as by the predecessor"
    for copy, original in zip(doubled[5:], plain, strict=True):
        assert not torch.equal(copy, original)
    others = [numbers(dataset(prepared_cache, Augmentation.PREDECESSOR, seed=seed)) for seed in (6, 7, 8)]
    assert all(not torch.equal(other, doubled) for other in others)


def run_epochs(data: PictureDataset, *, epochs: range, workers: int) -> list[tuple[torch.Tensor, ...]]:
    batches = loader(data, batch_size=2, shuffle=True, seed=9, epoch=epochs.start, workers=workers)
    found = []
    for epoch in epochs:
        data.set_epoch(epoch)
        found += [tuple(batch) for batch in batches]
    return found


def test_neither_workers_nor_a_resume_change_the_batches(prepared_cache: tuple[PictureCache, list[Prepared]]) -> None:
    data = dataset(prepared_cache, Augmentation.ON_THE_FLY)
    expected = run_epochs(data, epochs=range(3), workers=0)

    for found in (
        run_epochs(data, epochs=range(3), workers=2),
        run_epochs(data, epochs=range(1), workers=0) + run_epochs(data, epochs=range(1, 3), workers=1),
    ):
        assert len(found) == len(expected) == 9
        for ours, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_batches_cover_each_epoch_in_an_order_of_its_own(prepared_cache: tuple[PictureCache, list[Prepared]]) -> None:
    data = dataset(prepared_cache, Augmentation.NONE)
    batches = loader(data, batch_size=2, shuffle=True, seed=9)
    orders = []
    for epoch in range(4):
        data.set_epoch(epoch)
        images, labels, places = (torch.cat(part) for part in zip(*batches, strict=True))
        assert images.shape == (5, 3, *SIZE)
        assert labels.tolist() == [LABELS[place] for place in places]
        assert all(torch.equal(image, data[int(place)][0]) for image, place in zip(images, places, strict=True))
        orders.append(tuple(places.tolist()))

    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(set(orders)) > 2
    straight = loader(data, batch_size=2, shuffle=False, seed=9)
    assert torch.cat([places for _, _, places in straight]).tolist() == list(range(5))


def test_reading_takes_no_number_from_the_programs_own_generators(
    prepared_cache: tuple[PictureCache, list[Prepared]],
) -> None:
    state = torch.get_rng_state()
    np_state = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    run_epochs(dataset(prepared_cache, Augmentation.ON_THE_FLY), epochs=range(2), workers=0)

    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == np_state  # type: ignore[index,union-attr]


def test_a_training_loop_sets_the_epoch_through_the_sampler(
    prepared_cache: tuple[PictureCache, list[Prepared]],
) -> None:
    data = dataset(prepared_cache, Augmentation.ON_THE_FLY)
    sampler = loader(data, batch_size=2, shuffle=True, seed=9).sampler
    assert isinstance(sampler, EpochSampler)
    sampler.set_epoch(4)

    assert {epoch for _, epoch in sampler} == {4}
    assert data.epoch == 4


def test_no_picture_is_kept_in_memory(prepared_cache: tuple[PictureCache, list[Prepared]]) -> None:
    data = dataset(prepared_cache, Augmentation.ON_THE_FLY)
    before = len(pickle.dumps(data))
    numbers(data)

    assert len(pickle.dumps(data)) == before


def test_misuse_is_told(prepared_cache: tuple[PictureCache, list[Prepared]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are 5 pictures and 2 labels"):
        PictureDataset(*prepared_cache, [0, 1])
    data = dataset(prepared_cache, Augmentation.NONE)
    for index in (-1, 5):
        with pytest.raises(IndexError, match="the data set has 5 pictures"):
            data[index]
