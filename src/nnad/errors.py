"""Every error that nnad raises on purpose.

    NnadError
    ├── ImageError       one image cannot be read; a batch goes on without it
    ├── InputError       an argument is wrong (also a ValueError)
    │   ├── BudgetError  the false-alarm budget is smaller than the images support
    │   └── DatasetError a data set's file is missing, damaged or not what its name says
    ├── BackboneError    a network cannot be found, read or built
    ├── ModelError       a saved model is missing, damaged, foreign or in the way
    └── TrainingError    a network's training cannot go on, or its checkpoint is another run's

Each message is one line that names the file or the argument and says what to do.
"""


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`: for messages."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class NnadError(Exception):
    """Base class of all errors raised by nnad."""


class ImageError(NnadError):
    """An image cannot be read. The message begins with the image's name."""


class InputError(NnadError, ValueError):
    """An argument has a wrong value, type or shape."""


class BudgetError(InputError):
    """The calibration images are too few for the false-alarm budget that was asked for."""


class DatasetError(InputError):
    """A data set cannot be loaded: a file is missing, damaged or in no known layout."""


class BackboneError(NnadError):
    """A backbone is unknown, not installed, or its weights are not the expected ones."""


class ModelError(NnadError):
    """A saved model cannot be opened or written."""


class TrainingError(NnadError):
    """A loss is not finite, or a checkpoint is damaged or belongs to another run."""


class ImageWarning(UserWarning):
    """An image was read, but perhaps not as its owner expects."""


def first_line(error: Exception) -> str:
    """What another library's error says first, for one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
