"""The commands of `steer`: each parses its arguments, calls the library, and prints."""

COMMANDS = ("index", "search", "duplicates", "calibrate", "evaluate")  # beside a look, which has no name of its own
