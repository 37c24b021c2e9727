"""Where wrapped signing keys live: a file for each kind. They share a protocol and never import each other."""
