"""Which folders of a data set make up which class, in the order of the network's outputs."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from panoramic.manifest import HEALTHY_OR_OSTEOPOROSIS, DiagnosisClass
from training.errors import ClassFolderError, DatasetError


class TrainingClass(DiagnosisClass):
    """A class and where its pictures are."""

    folders: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of sub-folders of the data set; several are taken together."""

    def as_answer(self) -> DiagnosisClass:
        """The class as a model's manifest has it."""
        return DiagnosisClass(name=self.name, label=self.label, finding=self.finding)


def choose_classes(
    folders: Sequence[str],
    *,
    wanted: Sequence[str] = (),
    labels: Sequence[str] = (),
    finding: str = "",
) -> tuple[TrainingClass, ...]:
    """Decide on the classes of a data set.

    Where nothing is said: C1 against C3 with the published labels if both folders are there, since C2 lies between
    them; otherwise every folder, in alphabetical order. The finding is the last class unless another is named.

    Args:
        folders: Names of the data set's sub-folders.
        wanted: Classes in the order of the outputs, each a folder or several joined by ``+``, such as ``C2+C3``.
        labels: What each class is called in a result, in the same order; by default the published labels for C1 and
            C3, otherwise the class's own name.
        finding: Which class the screening looks for.

    Raises:
        ClassFolderError: An unknown folder.
        DatasetError: Fewer than two classes, a folder used twice, a wrong number of labels, two equal labels, a name or
            label that is not 1 to 200 printable characters, or a finding that is no class.
    """
    published = {c.name: c.label for c in HEALTHY_OR_OSTEOPOROSIS}
    names = tuple(wanted) or (tuple(published) if set(published) <= set(folders) else tuple(sorted(folders)))
    there = ", ".join(sorted(folders)) or "none"
    if len(names) < 2:
        raise DatasetError(
            f"there is {len(names)} class ({', '.join(names) or 'none'}), and at least 2 are needed: one sub-folder a "
            f"class. Sub-folders found: {there}"
        )
    # A folder may be called C2+C3 itself.
    parts = {name: (name,) if name in folders else tuple(name.split("+")) for name in names}
    used = [folder for name in names for folder in parts[name]]
    for folder in used:
        if folder not in folders:
            raise ClassFolderError(f"class folder {folder!r} does not exist; sub-folders found: {there}")
    if len(set(used)) < len(used):
        raise DatasetError(f"classes are {', '.join(names)}, but a folder may belong to one class only")
    if labels and len(labels) != len(names):
        raise DatasetError(
            f"there are {len(labels)} labels for {len(names)} classes ({', '.join(names)}): give one each"
        )
    shown = tuple(labels) or tuple(published.get(name, name) for name in names)
    if len(set(shown)) < len(shown):
        raise DatasetError(f"labels are {', '.join(shown)}, but no two classes may have the same")
    if finding and finding not in names:
        raise DatasetError(f"the finding is {finding!r}, but it must be one of the classes: {', '.join(names)}")
    for text in (*names, *shown):
        if not 1 <= len(text) <= 200 or not text.isprintable():
            raise DatasetError(f"a class or its label is {text!r}, but must have 1 to 200 printable characters")
    sought = finding or names[-1]
    return tuple(
        TrainingClass(name=name, label=label, finding=name == sought, folders=parts[name])
        for name, label in zip(names, shown, strict=True)
    )
