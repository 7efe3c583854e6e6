"""The commands of `steer`: each parses its arguments, calls the library, and prints."""

COMMANDS = ("index", "search", "duplicates", "evaluate")  # beside a look, which has no name of its own
