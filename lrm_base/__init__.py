"""What `lrm_core` and `prior` share without knowing each other: configurations, cards, checkpoints, image data."""
