"""What a user can get wrong: the image, the query, the gallery. And how names are written in messages.

All errors here are `ValueError`s whose text is one clear line. They speak of the arguments of Python functions; the
command line translates these into its options.
"""

import os


class ImageError(ValueError):
    """An image that cannot be looked at. The message is one line that begins with the image's name."""


class UnavailableError(ImageError):
    """An image that cannot be had now, though nothing may be wrong with it.

    The disk is not there, permission is missing, or memory has run out.
    """


class QueryError(ValueError):
    """A query that cannot be understood: it is empty, too long, not well formed, or a goal for another network."""


class GalleryError(ValueError):
    """A gallery that does not exist, was made with another network, is damaged, or was asked something ill-formed."""


def printable(name: str | bytes | os.PathLike) -> str:
    r"""A name as one line of plain text. Control characters and undecodable bytes become escapes (``\n``, ``\xff``).

    File names are bytes on disk. Python keeps bytes that are not UTF-8 as lone surrogates, which neither a terminal nor
    JSON may carry.
    """
    return "".join(c if c.isprintable() else _escape(c) for c in os.fsdecode(name))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shorten(name: str, length: int) -> str:
    """`name` in at most `length` characters. An ellipsis marks the cut."""
    return name if len(name) <= length else name[: length - 1].rstrip(" ,;") + "…"
