"""What metadata is too large to be worked on."""

from betrace_kms_server.rpc.metadata_bounds import MOST_BYTES_OF_A_VALUE, MOST_PAIRS, is_large


def test_metadata_of_clients_is_not_large() -> None:
    """Nothing, the most pairs, and the largest value pass; one more of either does not, be it text or bytes."""
    assert not is_large(())
    assert not is_large([("key", "")] * MOST_PAIRS)
    assert not is_large([("key", "x" * MOST_BYTES_OF_A_VALUE)])
    assert is_large([("key", "")] * (MOST_PAIRS + 1))
    assert is_large([("key", ""), ("key-bin", bytes(MOST_BYTES_OF_A_VALUE + 1))])
