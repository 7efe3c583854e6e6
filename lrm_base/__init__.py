"""The parts that `lrm_core` and `prior` share: configurations, checks, cards, checkpoints, downloads, image data.

A package of lrm-steering; `steering.shadowing` looks for this name.
"""
