"""Everything that the training code raises on purpose.

::

    TrainingError
    ├── DatasetError            a folder, a picture, a list of patients or annotations cannot be used
    │   └── ClassFolderError    a class's folder is not there
    ├── RunError                a run's folder, configuration, folds or checkpoint cannot be used
    └── ResourcesError          memory or disk does not suffice

Each carries one sentence to a person: what happened, which value, what is allowed, what to do. The command line prints
it and ends with status 2; whatever else is raised is a fault of the program.
"""


class TrainingError(Exception):
    """Any fault that the training code found and can explain."""


class DatasetError(TrainingError):
    """A folder, a picture, a list of patients or a file of annotations cannot be used."""


class ClassFolderError(DatasetError):
    """A data set has no folder of the name that a class was given."""


class RunError(TrainingError):
    """A run's folder, configuration, folds or checkpoint cannot be used."""


class ResourcesError(TrainingError):
    """The machine's memory or disk does not suffice."""
