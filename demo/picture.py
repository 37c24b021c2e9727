"""Take the picture of the page that the README shows: python -m demo.picture FILE

The daemon is the tour's, with its backend, new tenants now and then, and a Region of KMS that fails for a while.
"""

import asyncio
import shutil
import sys
from pathlib import Path

import click
from betrace_kms_client import KmsClient

from demo.stage import Stage, staged
from tests.browser import NAMES, browsing

_WIDTH, _HEIGHT = 1140, 985
_SECONDS = 400
"""So long that the start is out of sight: the page shows five minutes."""
_OUTAGE = range(250, 265)


def _use_new_key(kms: KmsClient, tenant: str) -> None:
    """Let KMS make a data key, and unwrap it."""
    kms.decrypt(tenant, kms.generate_data_key(tenant, fresh=True).ciphertext_blob)


async def picture(stage: Stage, program: str) -> bytes:
    """Let the page run until it is full, and return what it shows."""
    async with browsing(program) as browser:
        await browser.show(_WIDTH, height=_HEIGHT)
        await browser.open(stage.page)
        for second in range(_SECONDS):
            stage.near.always("drop" if second in _OUTAGE else "pass")
            await asyncio.sleep(1)
            if second % 3 == 0:
                await asyncio.to_thread(_use_new_key, stage.kms, f"tenant-{second}")
        return await browser.picture()


def main() -> None:
    """Take the picture with the browser that is found."""
    programs = [program for name in NAMES if (program := shutil.which(name))]
    if not programs:
        raise SystemExit(f"none of {', '.join(NAMES)} is here: make chromium unpacks Debian's")
    file = Path(sys.argv[1])
    with staged(click.echo) as stage:
        stage.start()
        file.write_bytes(asyncio.run(picture(stage, programs[0])))
    click.echo(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
