"""What a user can get wrong: the image, the query, the gallery. All are `ValueError`s whose text is one clear line."""

import os


class ImageError(ValueError):
    """An image that cannot be looked at. The message is one line that begins with the image's name."""


class UnavailableError(ImageError):
    """An image that cannot be had now, although nothing may be wrong with it: a disk, a right, memory is missing."""


class QueryError(ValueError):
    """A query that cannot be understood: empty, or longer than the text encoder reads."""


class GalleryError(ValueError):
    """A gallery that is not there, was made with another network, is damaged, or was asked something ill-formed."""


def printable(name: str | bytes | os.PathLike) -> str:
    r"""One line of plain text for a name: control characters and undecodable bytes become escapes (``\n``, ``\xff``).

    File names are bytes on disk; Python keeps those that are not UTF-8 as lone surrogates, which neither a terminal
    nor JSON may carry.
    """
    return "".join(c if c.isprintable() else _escape(c) for c in os.fsdecode(name))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
