"""Language to vision: a diffusion prior from text embeddings (N-D) to a backbone's outputs (M-D).

A package of lrm-steering; `steering.shadowing` looks for this name.
"""
