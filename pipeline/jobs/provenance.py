"""Where a measurement comes from: versions, commit, hardware."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "diffusers", "accelerate", "webdataset", "torch-fidelity", "numpy")


def provenance() -> dict[str, Any]:
    """Return versions, commit and hardware of this process, ready for JSON."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "commit": _commit(),
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpus": gpus},
    }


def _commit() -> str | None:
    """Return the commit of this code, with a `+` if the code has changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip() or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
