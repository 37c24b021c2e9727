"""`betrace-kms serve` on the event loop of the standard library, which has no switch: for bench/grpcio.py."""

import asyncio

import uvloop
from betrace_kms_client.cli import main

if __name__ == "__main__":
    uvloop.run = asyncio.run  # type: ignore[assignment]
    main()
