"""Processes that tests start, and what there is to compare of the runs they make."""

import json
import os
import socket
import subprocess
import sys
from subprocess import PIPE

import vi_demo

FILE = '''"""A line through six points."""
import numpyro, numpyro.distributions as dist
def data():
    return {"x": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "y": [0.1, 0.9, 2.3, 2.8, 4.1, 5.2]}
def model(x, y=None):
    a = numpyro.sample("a", dist.Normal(0, 2))
    b = numpyro.sample("b", dist.StudentT(4, 0, 2))
    numpyro.sample("y", dist.StudentT(3, a + b * x, 0.5), obs=y)
'''
# The same for processes of its own: a busy machine would look at fewer points than a quiet one.
TIMELESS = f"{FILE}\nfrom vi_demo.target import Target\nTarget.seconds_each = 1e-6\n"
CLOCKED = {"seconds", "made", "command"}


def started(*command, devices=8):
    """A Python process on so many virtual devices."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, env=env, stdout=PIPE, stderr=PIPE, text=True)


def printed(process):
    """What a process prints at last, read as JSON."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def bits(run):
    """What a run holds, but for what the clock says."""

    def without_clocks(told):
        if isinstance(told, dict):
            return {k: without_clocks(v) for k, v in told.items() if k not in CLOCKED}
        return [*map(without_clocks, told)] if isinstance(told, list) else told

    arrays = {
        f"{node.path}/{k}": (v.dtype, v.values.tobytes())
        for node in run.subtree
        for k, v in node.variables.items()
    }
    return arrays, without_clocks(vi_demo.summary(run))
