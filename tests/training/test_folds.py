"""Folds: nothing leaks between their parts, everyone is tested once, and the same seed draws the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.folds import Fold, draw_folds, read_folds, require_classes, united_patients, write_folds
from training.errors import DatasetError, RunError

PARTS = ("train", "validation", "test")


def parts_of(fold: Fold) -> tuple[set[int], ...]:
    return set(fold.train), set(fold.validation), set(fold.test)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[int], list[str], list[str]]:
    """Truths, patients (some with several pictures, some in several classes) and digests (some shared)."""
    classes = draw(st.integers(2, 3))
    truths, patients, digests = [], [], []
    for patient in range(draw(st.integers(30, 60))):
        for visit in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            truths.append((patient + (visit == 2)) % classes)
            patients.append(f"p{patient}")
            digests.append(f"d{len(digests)}")
    for _ in range(draw(st.integers(0, 4))):
        a, b = (draw(st.integers(0, len(digests) - 1)) for _ in range(2))
        digests[a] = digests[b]
    return truths, patients, digests


@settings(max_examples=25, deadline=None)
@given(data=data_sets(), folds=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_no_patient_and_no_picture_is_in_two_parts_and_every_class_is_in_each(
    data: tuple[list[int], list[str], list[str]], folds: int, seed: int
) -> None:
    truths, patients, digests = data
    drawn = draw_folds(truths, patients, folds=folds, seed=seed, digests=digests)

    assert [fold.index for fold in drawn] == list(range(folds))
    assert sorted(i for fold in drawn for i in fold.test) == list(range(len(truths)))
    for fold in drawn:
        parts = parts_of(fold)
        assert sorted(i for part in parts for i in part) == list(range(len(truths)))
        for whose in (patients, digests):
            values = [{whose[i] for i in part} for part in parts]
            assert sum(map(len, values)) == len(set(whose))
        for part in parts:
            assert {truths[i] for i in part} == set(truths)


def test_classes_and_parts_keep_their_shares() -> None:
    truths = [0] * 400 + [1] * 100
    drawn = draw_folds(truths, [f"p{i}" for i in range(500)], folds=5, seed=3, validation_share=0.25)

    for fold in drawn:
        assert (len(fold.train), len(fold.validation), len(fold.test)) == (300, 100, 100)
        assert [sum(truths[i] for i in getattr(fold, part)) for part in PARTS] == [60, 20, 20]


def test_the_seed_decides_and_nothing_else() -> None:
    truths, patients = [0, 1] * 30, [f"p{i // 2}" for i in range(60)]
    draw = lambda seed: draw_folds(truths, patients, folds=3, seed=seed)  # noqa: E731

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_identical_pictures_unite_their_patients() -> None:
    # a and c share no picture, but each shares one with b.
    patients = ["c", "b", "b", "a", "d", "e"]
    digests = ["1", "1", "2", "2", "3", "4"]

    assert united_patients(patients, digests) == (("a", "b", "c"),)
    assert united_patients(patients, list("123456")) == ()


@pytest.mark.parametrize(
    ("truths", "patients", "folds", "sentence"),
    [
        ([1] * 20, [f"p{i}" for i in range(20)], 5, "the 20 pictures are of 1 class; at least 2 are needed"),
        ([0] * 9 + [1] * 4, [f"p{i}" for i in range(13)], 5, "class C3 has pictures of 4 patients, but 5 folds"),
        ([0] * 9 + [1] * 9, ["p"] * 9 + [f"q{i}" for i in range(9)], 3, "class C1 has pictures of 1 patients"),
        ([0] * 9 + [1] * 3, [f"p{i}" for i in range(12)], 2, "class C3 has pictures of 3 patients, but 2 folds.*4"),
    ],
)
def test_what_cannot_be_split_is_told_before_anything_is_spent(
    truths: list[int], patients: list[str], folds: int, sentence: str
) -> None:
    with pytest.raises(DatasetError, match=sentence):
        draw_folds(truths, patients, folds=folds, seed=0, class_names=["C1", "C3"])


def test_patients_united_by_identical_pictures_no_longer_count_apart() -> None:
    truths, patients = [0] * 9 + [1] * 5, [f"p{i}" for i in range(14)]
    assert len(draw_folds(truths, patients, folds=5, seed=0)) == 5

    with pytest.raises(DatasetError, match="number 1 has pictures of 4 patients"):
        draw_folds(truths, patients, folds=5, seed=0, digests=[*"abcdefghijklm", "m"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"folds": 1}, "folds is 1; at least 2"),
        ({"seed": -1}, "seed is -1"),
        ({"validation_share": 0.0}, "validation_share is 0.0"),
        ({"validation_share": 0.6}, "validation_share is 0.6"),
        ({"digests": ["a"]}, "12 truths, 12 patients and 1 digests"),
    ],
)
def test_numbers_out_of_range(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw_folds([0, 1] * 6, [f"p{i}" for i in range(12)], **{"folds": 3, "seed": 0, **options})  # type: ignore[arg-type]


NAMES = [f"C{1 + i % 2}/ä{i}.png" for i in range(24)]
DIGESTS = [f"{i:032x}" for i in range(24)]
PATIENTS = [f"p{i // 2}" for i in range(24)]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, tuple[Fold, ...]]:
    folds = draw_folds([i % 2 for i in range(24)], PATIENTS, folds=3, seed=1)
    write_folds(tmp_path / "folds.json", folds, NAMES, DIGESTS)
    return tmp_path / "folds.json", folds


def test_written_folds_are_read_whatever_the_order_of_the_pictures(written: tuple[Path, tuple[Fold, ...]]) -> None:
    path, folds = written
    assert read_folds(path, NAMES, DIGESTS, patients=PATIENTS) == folds

    order = np.random.default_rng(0).permutation(24).tolist()
    again = read_folds(path, [NAMES[i] for i in order], [DIGESTS[i] for i in order])
    for before, after in zip(folds, again, strict=True):
        for a, b in zip(parts_of(before), parts_of(after), strict=True):
            assert a == {order[i] for i in b}
    assert [path.name for path in path.parent.iterdir()] == ["folds.json"]


def test_folds_of_other_pictures_are_refused(written: tuple[Path, tuple[Fold, ...]]) -> None:
    path, _ = written
    with pytest.raises(RunError, match="names pictures that the data set does not hold: C2/ä23.png"):
        read_folds(path, NAMES[:-1], DIGESTS[:-1])
    with pytest.raises(RunError, match="does not name every picture of the data set: C9/new.png"):
        read_folds(path, [*NAMES, "C9/new.png"], [*DIGESTS, "f" * 32])
    with pytest.raises(RunError, match="had other contents: C1/ä0.png;"):
        read_folds(path, NAMES, ["f" * 32, *DIGESTS[1:]])


def test_without_digests_all_the_rest_is_checked(written: tuple[Path, tuple[Fold, ...]]) -> None:
    path, folds = written
    assert read_folds(path, NAMES, patients=PATIENTS) == folds
    with pytest.raises(RunError, match="names pictures that the data set does not hold: C2/ä23.png"):
        read_folds(path, NAMES[:-1])
    with pytest.raises(RunError, match="does not name every picture of the data set: C9/new.png"):
        read_folds(path, [*NAMES, "C9/new.png"])
    with pytest.raises(RunError, match="a patient in two parts"):
        read_folds(path, NAMES, patients=[f"p{i % 7}" for i in range(24)])


def test_folds_that_would_leak_are_refused(written: tuple[Path, tuple[Fold, ...]]) -> None:
    path, folds = written
    with pytest.raises(RunError, match="a patient in two parts"):
        read_folds(path, NAMES, DIGESTS, patients=[f"p{i % 7}" for i in range(24)])

    shared = list(DIGESTS)
    shared[folds[0].test[0]] = shared[folds[0].train[0]]
    write_folds(path, folds, NAMES, shared)
    with pytest.raises(RunError, match="identical pictures in two parts"):
        read_folds(path, NAMES, shared)


def test_folds_drawn_for_other_classes_are_refused() -> None:
    truths = [0, 1] * 20
    folds = draw_folds(truths, [str(number) for number in range(40)], folds=2, seed=0)
    require_classes(folds, truths, path=Path("folds.json"), class_names=("C1", "C3"))
    finer = [2 if index in folds[0].validation and truth else truth for index, truth in enumerate(truths)]
    sentence = r"folds folds\.json have no picture of class C3 in the train part of fold 0; draw new folds, or give"
    with pytest.raises(RunError, match=sentence):
        require_classes(folds, finer, path=Path("folds.json"), class_names=("C1", "C2", "C3"))


def test_damaged_files_are_told(written: tuple[Path, tuple[Fold, ...]]) -> None:
    path, _ = written
    good = json.loads(path.read_text(encoding="utf-8"))

    def damage(**changes: object) -> None:
        path.write_text(json.dumps({**good, **changes}), encoding="utf-8")

    moved = json.loads(json.dumps(good["folds"]))
    moved[0]["train"].append(moved[0]["test"][0])
    lost = json.loads(json.dumps(good["folds"]))
    lost[1]["validation"].pop()
    empty = json.loads(json.dumps(good["folds"]))
    empty[0]["train"] += empty[0]["validation"]
    empty[0]["validation"] = []
    for folds in (moved, lost, empty, good["folds"][:2], []):
        damage(folds=folds)
        with pytest.raises(RunError, match="every picture must be in one part of each fold and tested once"):
            read_folds(path, NAMES, DIGESTS)
    for folds in ([{}], 3, None, ["x"]):
        damage(folds=folds)
        with pytest.raises(RunError, match="are damaged"):
            read_folds(path, NAMES, DIGESTS)
    damage(digests=[])
    with pytest.raises(RunError, match="are damaged"):
        read_folds(path, NAMES, DIGESTS)
    damage(schema_version=7)
    with pytest.raises(RunError, match="schema 7"):
        read_folds(path, NAMES, DIGESTS)
    path.write_bytes(b"\xff{")
    with pytest.raises(RunError, match="are damaged"):
        read_folds(path, NAMES, DIGESTS)
    with pytest.raises(RunError, match="cannot be read: No such file"):
        read_folds(path.with_name("none.json"), NAMES, DIGESTS)
