"""Who wraps keys: one file for each key-management service. They share a protocol and never import each other."""
