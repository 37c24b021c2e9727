"""The only memory of keys: bounded, single flight, and gated where other daemons write."""
