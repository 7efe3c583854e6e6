"""What `lrm_core` and `prior` share without knowing each other: configurations, weight cards, checkpoints, image data."""
