"""Where wrapped signing keys live: one file for each kind of store. They share a protocol and never import each other."""
