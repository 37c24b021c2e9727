"""Who calls, by the connection or by what the call carries, and whether that caller may do what it asks."""
