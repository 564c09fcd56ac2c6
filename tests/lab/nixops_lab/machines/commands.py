"""Short-lived commands of the host: ip, nft, nsenter."""

import asyncio
from collections.abc import Sequence

from nixops_lab.machines.spec import Completed, MachineError


async def run(argv: Sequence[str], stdin: bytes = b"") -> Completed:
    """Run to the end. A cancelled caller takes the command with it."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        stdout, stderr = await process.communicate(stdin)
    except asyncio.CancelledError:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    assert process.returncode is not None
    return Completed(process.returncode, stdout, stderr)


async def succeed(argv: Sequence[str], stdin: bytes = b"") -> bytes:
    """Its output. Raises MachineError with its last words if it fails."""
    completed = await run(argv, stdin)
    if completed.exit_status != 0:
        said = completed.stderr.decode(errors="replace").strip()
        raise MachineError(f"{' '.join(argv)} ended with {completed.exit_status}: {said}")
    return completed.stdout
