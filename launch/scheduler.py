"""Questions to Slurm: what it has queued, what became of jobs, its limits."""

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Queued:
    """An element of an array that the scheduler still has: why it waits, and where it runs."""

    state: str
    reason: str
    node: str

    @property
    def runs(self) -> bool:
        """Whether its processes may live."""
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def held(self) -> bool:
        """Whether it waits for somebody to release it."""
        return self.state == "PENDING" and "held" in self.reason.lower()


def require() -> None:
    """Refuse to go on where there is no scheduler, by a ValueError."""
    if shutil.which("sbatch") is None:
        raise ValueError(
            "there is no Slurm on this machine (no sbatch): run this on a login node of the "
            "cluster, look at its scripts by --dry_run, or use python -m launch.local"
        )


def queue() -> dict[str, Queued] | None:
    """What the scheduler still has of this user, by element; None where it cannot be asked."""
    # By user, as a question by number is refused as soon as one number is forgotten.
    text = _ask(["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%T|%r|%N"])
    if text is None:
        return None
    found = {}
    for line in text.splitlines():
        element, state, reason, node = line.split("|", 3)
        found[element] = Queued(state, reason, node)
    return found


def ended(jobs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """State and nodes of elements that the accounting knows; it may lag, and may not exist."""
    wanted = sorted(set(jobs))
    if not wanted or shutil.which("sacct") is None:
        return {}
    words = ["sacct", "-X", "-n", "-P", "-j", ",".join(wanted), "-o", "JobID,State,NodeList"]
    found = {}
    for line in (_ask(words) or "").splitlines():
        element, state, nodes = line.split("|")[:3]
        found[element] = (state, nodes)
    return found


def largest_array() -> int:
    """Elements that one array may have (MaxArraySize)."""
    said = _ask(["scontrol", "show", "config"]) or ""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", said, re.M)
    return max(int(match.group(1)), 1) if match else 1001  # Slurm's own default


def words_of(error: Exception) -> str:
    """What the scheduler itself said about a submission that it refused."""
    said = getattr(error, "stderr", None) or str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(("sbatch:", "srun:"))]
    return "\n  ".join(own or lines[-3:])


def _ask(words: list[str]) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
