"""One settings object, and where each value came from."""
