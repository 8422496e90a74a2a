"""What happened in each epoch of one fold, and what follows from it: the best epoch, and when to stop."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from training.errors import RunError


class Epoch(BaseModel):
    """One epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_loss: float
    """Mean over the training part, as the weights were at each step."""
    validation_loss: float | None
    """Mean over the validation part after the epoch; None where there is no such part."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Of the epoch's last step."""


class History(BaseModel):
    """The epochs of one fold in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: tuple[Epoch, ...] = ()

    def then(self, epoch: Epoch) -> Self:
        """The history with one epoch more."""
        return self.model_copy(update={"epochs": (*self.epochs, epoch)})

    @property
    def best_epoch(self) -> int:
        """The first epoch, counted from 1, with the lowest validation loss; the last where there is no validation.

        Raises:
            RunError: There is no epoch.
        """
        if not self.epochs:
            raise RunError("no epoch was trained, so none is the best")
        losses = [epoch.validation_loss for epoch in self.epochs]
        known = [(loss, place) for place, loss in enumerate(losses, 1) if loss is not None]
        return min(known)[1] if known else len(self.epochs)

    def ended(self, *, epochs: int, patience: int) -> bool:
        """Whether training is over: all epochs are done, or the validation loss has not fallen for too long."""
        done = len(self.epochs)
        return done > 0 and (done >= epochs or done - self.best_epoch >= patience)

    def as_json(self) -> dict[str, object]:
        """For ``history.json``: the best epoch, and by epoch the losses and the learning rate."""
        return {
            "best_epoch": self.best_epoch,
            "epochs": [{"epoch": place, **epoch.model_dump()} for place, epoch in enumerate(self.epochs, 1)],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Self:
        """What `as_json` made.

        Raises:
            ValueError: Something else.
        """
        rows = values.get("epochs")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("there is no list of epochs")
        return cls(epochs=[{name: row[name] for name in row if name != "epoch"} for row in rows])
