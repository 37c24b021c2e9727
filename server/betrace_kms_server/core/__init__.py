"""What every folder may import: conditions, value types, tenants, events."""
