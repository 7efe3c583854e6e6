"""`python -m steering` is `steer`."""

import runpy

runpy.run_module("steer_cli", run_name="__main__", alter_sys=True)
