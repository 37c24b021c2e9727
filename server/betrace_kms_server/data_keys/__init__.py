"""Use cases of data keys: hand out, seal, open, seal again."""
