"""What an operator asks: state of the master key, validation, HTTP, prices."""
