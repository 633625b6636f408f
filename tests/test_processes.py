"""Several processes as one run, and how each ends when one is lost."""

import json
import signal

import pytest
from started import TIMELESS, bits, free_port, started

import vi_demo

LINE = """
import numpyro, numpyro.distributions as dist

def model():
    numpyro.sample("x", dist.Normal(1.0, 2.0))
"""


def processes(folder, *arguments):
    """The two processes of one command."""
    where = f"127.0.0.1:{free_port()}"
    command = ["-m", "vi_demo.cli", *arguments, "--coordinator", where, "--processes", 2]
    return [started(*command, "--process", k, "--out", folder / str(k), devices=1) for k in (0, 1)]


def test_of_two_processes_the_first_alone_speaks_and_writes(tmp_path):
    file = tmp_path / "line.py"
    file.write_text(LINE)
    first, second = processes(tmp_path, "run", file, "--json", "--no-film")
    said, told = first.communicate(timeout=300)
    assert first.returncode == 0, told
    assert json.loads(said)["settings"]["mesh"] == {"draws": 2, "rows": 1}
    assert second.communicate()[0] == ""
    assert second.returncode == 0 and not (tmp_path / "1").exists()
    assert (tmp_path / "0" / "report.html").exists()


def until(process, phase):
    """Wait until a process says that it has come to a phase."""
    for line in process.stderr:
        if line.startswith(phase):
            return


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_stops_the_other_in_a_line_that_names_it(
    blow, which, tmp_path
):
    file = tmp_path / "line.py"
    file.write_text(LINE)
    both = processes(tmp_path, "run", file)
    until(both[0], "model")
    both[which].send_signal(blow)
    _, said = both[1 - which].communicate(timeout=60)
    assert both[1 - which].returncode != 0
    assert said.strip().splitlines()[-1] == (
        f"vi-demo: process {which} of this run is gone, so this one stops; "
        "see what was said there."
    )
    assert "Traceback" not in said and "grpc" not in said.lower()
    assert not (tmp_path / "0").exists()
    both[which].kill()
    both[which].communicate()


def test_processes_that_are_terminated_go_on_in_the_same_bits(tmp_path):
    file = tmp_path / "line.py"
    file.write_text(TIMELESS)
    asked = ["run", file, "--optimizer=adam", "--draws=200", "--no-film", "--fit=reverse_kl"]
    whole = processes(tmp_path / "whole", *asked)
    assert all(process.communicate(timeout=300) and not process.returncode for process in whole)
    both = processes(tmp_path / "on", *asked, "--checkpoint", 0)
    until(both[0], "reverse KL:")
    for process in both:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60)[1] for process in both]
    assert both[0].returncode == 143 and both[1].returncode != 0, said
    assert "terminated; the same command with --resume goes on from" in said[0]
    # The second hears of it itself, or that the first is gone, if it was waiting for that one.
    assert said[1].startswith(("vi-demo: terminated; the first", "vi-demo: process 0 of this run"))
    assert len(said[1].splitlines()) == 1
    both = processes(tmp_path / "on", *asked, "--resume")
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "going on from the checkpoint of" in said[0] and said[1] == ""
    assert bits(vi_demo.load(tmp_path / "on/0")) == bits(vi_demo.load(tmp_path / "whole/0"))
    refused = processes(tmp_path / "on", *asked, "--seed=1", "--checkpoint", 0)
    until(refused[0], "reverse KL:")
    for process in refused:
        process.kill()
        process.communicate()
    one = started("-m", "vi_demo.cli", *asked, "--resume", "--out", tmp_path / "on/0", devices=2)
    said = one.communicate(timeout=300)[1].splitlines()[-1]
    assert one.returncode == 2
    assert "seed was 1 and is 0; mesh was draws=2,rows=1 and is draws=1,rows=1; processes" in said


def test_processes_that_nobody_started_are_told_how(tmp_path):
    process = started("-m", "vi_demo.cli", "run", "bimodal", "--distributed", "--out", tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "no other processes were found" in said and "--coordinator HOST:PORT" in said
    assert len(said.strip().splitlines()) == 1
