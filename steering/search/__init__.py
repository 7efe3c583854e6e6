"""Language-guided search: index images once, then look through them for what is named."""
