"""Everything that the radiograph code raises on purpose.

::

    PanoramicError
    ├── ImageError                  something about the file that was sent
    │   ├── ImageUnreadableError
    │   ├── ImageTooLargeError
    │   ├── NotARadiographError
    │   └── DecoderTimeoutError
    └── ModelFileError

Each instance carries one message to a person: what happened, which value, what is allowed, what to do. No message
repeats what a file contains, for a radiograph's header names its patient. The errors of the decoding libraries quote
what they read, so those are replaced rather than chained (``from None``).
"""


class PanoramicError(Exception):
    """Any fault that the radiograph code found and can explain."""


class ImageError(PanoramicError):
    """The file sent as a radiograph cannot be used."""


class ImageUnreadableError(ImageError):
    """The file is no picture of an admitted format, or is damaged, cut short or of a kind that nothing here decodes."""


class ImageTooLargeError(ImageError):
    """The file, the picture in it or the memory to decode it is over a limit."""


class NotARadiographError(ImageError):
    """The picture can be decoded and is not a panoramic radiograph (or not a crop of one)."""


class DecoderTimeoutError(ImageError):
    """The picture took longer to decode than the deadline allows."""


class ModelFileError(PanoramicError):
    """A model file cannot be used: unreadable, altered, incomplete or of an unknown kind."""
