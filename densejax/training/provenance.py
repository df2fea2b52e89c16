"""Where a result comes from: versions, commit, devices, command."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import densejax

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn"),
    *("h5py", "tensorstore", "tifffile", "imagecodecs"),
)


def provenance() -> dict[str, Any]:
    """What ran where: time, command, host, Python, versions, git commit and devices.

    Returns:
      Values for JSON. ``git`` is None where the code does not lie in its own git working tree, else
      its ``commit`` and whether tracked files differ from it (``modified``).
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.orig_argv[1:]],
        "folder": os.getcwd(),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"densejax": densejax.__version__} | _versions(),
        "git": _git(Path(densejax.__file__).resolve()),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(file: Path) -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository, which says nothing about it.
        ask("ls-files", "--error-unmatch", file.name)
        changes = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "modified": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None
