"""The commands of `steer`: each parses its arguments, calls the library, and prints."""
