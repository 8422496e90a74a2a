"""What a data set is made of: classes, pictures, patients; and the predictions that are made on it."""

import csv
import os
import resource
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from panoramic.manifest import HEALTHY_OR_OSTEOPOROSIS, DiagnosisClass
from training.classes import choose_classes
from training.data.dataset import find_dataset
from training.data.patients import OnePicturePerPatient, PatientPattern, PatientTable, patient_rule
from training.errors import DatasetError, ResourcesError, RunError
from training.files import write_whole
from training.predictions import Predictions, read_predictions, write_predictions


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


# Classes


def test_the_published_classes_are_chosen_where_both_are_there() -> None:
    classes = choose_classes(["C3", "C2", "C1"])
    assert tuple(cls.as_answer() for cls in classes) == HEALTHY_OR_OSTEOPOROSIS
    assert [cls.folders for cls in classes] == [("C1",), ("C3",)]


def test_other_folders_are_taken_in_alphabetical_order() -> None:
    classes = choose_classes(["wide", "narrow", "C1"])
    assert [(cls.name, cls.label, cls.finding) for cls in classes] == [
        ("C1", "Healthy Patient", False),
        ("narrow", "narrow", False),
        ("wide", "wide", True),
    ]


def test_classes_join_folders_in_the_order_wanted() -> None:
    classes = choose_classes(["C1", "C2", "C3"], wanted=["C3+C2", "C1"], labels=["sick", "well"], finding="C3+C2")
    assert [(cls.folders, cls.label, cls.finding) for cls in classes] == [
        (("C3", "C2"), "sick", True),
        (("C1",), "well", False),
    ]


def test_a_folder_may_have_a_plus_in_its_name() -> None:
    assert [cls.folders for cls in choose_classes(["C1", "C2+C3"])] == [("C1",), ("C2+C3",)]


@pytest.mark.parametrize(
    ("folders", "options", "sentence"),
    [
        ([], {}, "there is 0 class"),
        (["C1"], {}, r"there is 1 class \(C1\)"),
        (["C1", "C3"], {"wanted": ["C1"]}, "there is 1 class"),
        (["C1", "C3"], {"wanted": ["C1", "C4"]}, "class folder 'C4' does not exist; sub-folders found: C1, C3"),
        (["C1", "C3"], {"wanted": ["C1", "C1+C3"]}, "a folder may belong to one class only"),
        (["C1", "C3"], {"wanted": ["C1", "C3+"]}, "class folder '' does not exist"),
        (["C1", "C3"], {"labels": ["a"]}, "there are 1 labels for 2 classes"),
        (["C1", "C3"], {"labels": ["a", "a"]}, "no two classes may have the same"),
        (["C1", "C3"], {"labels": ["a", ""]}, "is '', but must have 1 to 200 printable characters"),
        (["C1", "C3"], {"labels": ["a", "b\n"]}, "printable characters"),
        (["C1", "x" * 201], {}, "printable characters"),
        (["C1", "C3"], {"finding": "C2"}, "the finding is 'C2', but it must be one of the classes: C1, C3"),
    ],
)
def test_classes_that_cannot_be_chosen(folders: list[str], options: dict[str, object], sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        choose_classes(folders, **options)


# Pictures


def test_a_data_set_is_listed_by_name(tmp_path: Path) -> None:
    make(tmp_path, "C3/b.png", "C1/10.png", "C1/9.png", "C2/x.png", "C1/.hidden", ".git/x", "notes.txt", "C1/in/y.png")
    dataset = find_dataset(tmp_path)
    assert [(picture.name, picture.class_index) for picture in dataset.pictures] == [
        ("C1/10.png", 0),
        ("C1/9.png", 0),
        ("C3/b.png", 1),
    ]
    assert all(picture.path == tmp_path / picture.name for picture in dataset.pictures)
    assert all(picture.patient == picture.name for picture in dataset.pictures)
    assert dataset.counts() == {"C1": 2, "C3": 1}
    assert dataset.left_out == ("C2",)
    assert dataset.finding_index == 1


def test_joined_folders_are_one_class(tmp_path: Path) -> None:
    make(tmp_path, "C1/a.png", "C2/a.png", "C3/a.png")
    dataset = find_dataset(tmp_path, classes=["C2+C3", "C1"], finding="C2+C3")
    assert [(picture.name, picture.class_index) for picture in dataset.pictures] == [
        ("C1/a.png", 1),
        ("C2/a.png", 0),
        ("C3/a.png", 0),
    ]
    assert dataset.finding_index == 0
    assert dataset.left_out == ()


def test_linked_folders_and_pictures_count(tmp_path: Path) -> None:
    make(tmp_path / "set", "C1/a.png", "C3/a.png")
    make(tmp_path / "other", "b.png")
    (tmp_path / "set/C1/b.png").symlink_to(tmp_path / "other/b.png")
    (tmp_path / "set/C1/broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "set/C1/loop").symlink_to(tmp_path / "set/C1/loop")
    os.mkfifo(tmp_path / "set/C1/pipe.png")
    assert find_dataset(tmp_path / "set").counts() == {"C1": 2, "C3": 1}


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none cannot be listed: No such file or directory"):
        find_dataset(tmp_path / "none")
    make(tmp_path, "C1/a.png")
    with pytest.raises(DatasetError, match="a.png cannot be listed: Not a directory"):
        find_dataset(tmp_path / "C1/a.png")
    (tmp_path / "C3/inner").mkdir(parents=True)
    with pytest.raises(DatasetError, match="class folder .*C3 holds no pictures"):
        find_dataset(tmp_path)


def test_names_that_no_table_can_hold_are_refused_at_once(tmp_path: Path) -> None:
    make(tmp_path, "C1/a.png", "C3/a.png")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/C3/\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DatasetError, match=r"C3/\\udcff.png' has a name that is not UTF-8; rename the file"):
        find_dataset(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    make(tmp_path, "C1/a.png", "C3/a.png")
    (tmp_path / "C3").chmod(0)
    with pytest.raises(DatasetError, match="class folder .*C3 cannot be listed: Permission denied"):
        find_dataset(tmp_path)


# Patients


def table(tmp_path: Path, text: str, *, encoding: str = "utf-8") -> PatientTable:
    (tmp_path / "patients.csv").write_text(text, encoding=encoding)
    return PatientTable(tmp_path / "patients.csv")


NAMES = ("C1/a_1.png", "C1/a_2.png", "C3/b_1.png")


def test_a_table_of_patients(tmp_path: Path) -> None:
    rows = "patient_id,age,path\r\nA,7,C1/a_1.png\r\n A ,8,./C1/a_2.png\r\nB,9,C3\\b_1.png\r\nZ,9,C2/gone.png\r\n\r\n"
    rule = table(tmp_path, rows, encoding="utf-8-sig")
    assert rule.assign(NAMES) == dict(zip(NAMES, "AAB", strict=True))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has the columns none, but needs path and patient_id"),
        ("path,patient\n", "has the columns path, patient, but needs path and patient_id"),
        ("path,patient_id\nC1/a_1.png,A\n", "names no patient for C1/a_2.png, C3/b_1.png; every picture needs one"),
        ("path,patient_id\nC1/a_1.png,\nC1/a_2.png\nC3/b_1.png,B\n", "names no patient for C1/a_1.png, C1/a_2.png"),
        (
            "path,patient_id\nC1/a_1.png,A\nC1/a_2.png,A\nC3/b_1.png,B\nC3/c.png,C\n",
            "names C3/c.png, which the data set does not hold",
        ),
        ("path,patient_id\nC1/a_1.png,A\n./C1/a_1.png,B\n", "gives C1/a_1.png to two patients"),
    ],
)
def test_tables_that_do_not_fit(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=sentence):
        table(tmp_path, text).assign(NAMES)


def test_a_table_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: it is no CSV file in UTF-8"):
        table(tmp_path, "path,patient_id\nC1/ä.png,A\n", encoding="latin-1").assign(NAMES)
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        PatientTable(tmp_path / "none.csv").assign(NAMES)
    with pytest.raises(DatasetError, match="cannot be read: it is no CSV file"):
        table(tmp_path, "path,patient_id\n" + "x" * 200_000 + ",A\n").assign(NAMES)


def test_many_missing_names_are_counted(tmp_path: Path) -> None:
    names = [f"C1/{number}.png" for number in range(10)]
    with pytest.raises(DatasetError, match=r"for C1/0.png, C1/1.png, C1/2.png and 7 more; every"):
        table(tmp_path, "path,patient_id\n").assign(names)


def test_a_pattern_finds_patients_in_file_names() -> None:
    assert PatientPattern(r"^(\w+)_\d").assign(NAMES) == dict(zip(NAMES, "aab", strict=True))
    assert PatientPattern(r"^[a-z]").assign(NAMES) == dict(zip(NAMES, "aab", strict=True))


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", "which is no regular expression"),
        ("^C1", "finds nothing in the name of C1/a_1.png"),
        ("(x)?a", "finds nothing in the name of C1/a_1.png"),
        ("z*", "finds nothing in the name of C1/a_1.png"),
    ],
)
def test_patterns_that_do_not_fit(pattern: str, sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        PatientPattern(pattern).assign(NAMES)


def test_which_rule_a_text_asks_for(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("")
    assert isinstance(patient_rule(""), OnePicturePerPatient)
    assert isinstance(patient_rule("none.CSV"), PatientTable)
    assert isinstance(patient_rule(str(tmp_path / "list")), PatientTable)
    assert isinstance(patient_rule(r"^(\d+)_"), PatientPattern)
    assert isinstance(patient_rule("|".join(["[a-z]+"] * 100)), PatientPattern)


# Predictions

THREE = tuple(DiagnosisClass(name=name, label=name, finding=name == "C3") for name in ("C1", "C2", "C3"))


def predictions(count: int, *, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    return Predictions(
        classes=THREE,
        names=tuple(f"C1/{i}, “x”.png" for i in range(count)),
        digests=tuple(f"{i:032x}" for i in range(count)),
        patients=tuple(f"p{i // 2}" for i in range(count)),
        folds=np.arange(count, dtype=np.int64) // 2 % 3,
        truths=rng.integers(0, 3, count),
        probabilities=rng.dirichlet([1, 1, 1], count),
        thresholds={0: 0.2, 1: 0.5, 2: 1 / 3},
    )


def same(one: Predictions, other: Predictions) -> bool:
    used = set(one.folds.tolist())
    return (
        (one.classes, one.names, one.digests, one.patients)
        == (other.classes, other.names, other.digests, other.patients)
        and np.array_equal(one.folds, other.folds)
        and np.array_equal(one.truths, other.truths)
        and np.array_equal(one.probabilities, other.probabilities)
        and {fold: one.thresholds[fold] for fold in used} == dict(other.thresholds)
    )


@pytest.mark.parametrize("count", [0, 1, 20])
def test_predictions_come_back_to_the_last_bit(count: int, tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, predictions(count))
    assert same(predictions(count), read_predictions(path, classes=THREE))


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=60, deadline=None)
@given(name=_TEXT, patient=_TEXT, score=st.floats(0, 1), threshold=st.floats(0, 1))
def test_any_name_comes_back(name: str, patient: str, score: float, threshold: float) -> None:
    given_ = Predictions(
        classes=HEALTHY_OR_OSTEOPOROSIS,
        names=(name,),
        digests=("0" * 32,),
        patients=(patient,),
        folds=np.zeros(1, np.int64),
        truths=np.ones(1, np.int64),
        probabilities=np.array([[1 - score, score]]),
        thresholds={0: threshold},
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.csv"
        write_predictions(path, given_)
        assert same(given_, read_predictions(path, classes=HEALTHY_OR_OSTEOPOROSIS))


def test_the_finding_is_diagnosed_from_its_folds_threshold_on() -> None:
    two = Predictions(
        classes=THREE,
        names=("a", "b", "c", "d"),
        digests=("",) * 4,
        patients=("",) * 4,
        folds=np.array([0, 1, 0, 1]),
        truths=np.array([0, 1, 2, 2]),
        probabilities=np.array([[0.5, 0.2, 0.3], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7], [0.1, 0.2, 0.7]]),
        thresholds={0: 0.3, 1: 0.8},
    )
    # Below the threshold the likelier of the others, even where the finding is likelier still.
    assert two.diagnoses().tolist() == [2, 0, 2, 1]
    assert two.scores.tolist() == [0.3, 0.3, 0.7, 0.7]
    assert two.positives.tolist() == [False, False, True, True]
    assert two.finding_index == 2


def test_the_file_shows_truth_and_prediction_by_name(tmp_path: Path) -> None:
    written = predictions(20)
    write_predictions(tmp_path / "p.csv", written)
    with (tmp_path / "p.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = [cls.name for cls in THREE]
    by_name = confusion_matrix([row["truth"] for row in rows], [row["prediction"] for row in rows], labels=names)
    assert np.array_equal(by_name, confusion_matrix(written.truths, written.diagnoses(), labels=[0, 1, 2]))
    assert [float(row["probability_C2"]) for row in rows] == written.probabilities[:, 1].tolist()


def test_predictions_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    with pytest.raises(RunError, match="cannot be read: No such file"):
        read_predictions(path, classes=THREE)
    write_predictions(path, predictions(5))
    with pytest.raises(RunError, match="damaged or of other classes than C1, C3"):
        read_predictions(path, classes=HEALTHY_OR_OSTEOPOROSIS)
    text = path.read_text()
    for damaged in (text[:-30], text.replace("probability_C2", "x"), text.replace(",C1,", ",C9,"), "\ufffe"):
        path.write_text(damaged, encoding="utf-16" if damaged == "\ufffe" else "utf-8")
        with pytest.raises(RunError, match="are damaged or of other classes"):
            read_predictions(path, classes=THREE)


# Files


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    # A limit on the size of files, which is how a full disk looks to a program.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ResourcesError, match="a.bin was not written: File too large; free some space"):
            write_whole(path, b"n" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourcesError, match=r"none/a.bin was not written: No such file or directory"):
        write_whole(tmp_path / "none/a.bin", b"x")
