"""Runs that are interrupted, wherever and by whatever, end in the same bits as others do."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from started import FILE, TIMELESS, bits

import vi_demo
from vi_demo import checkpoints, fitting, guides, loading, packing, results
from vi_demo.checkpoints import Checkpoints, Track
from vi_demo.divergences.estimators import Draws, Estimate
from vi_demo.errors import InputError, Terminated
from vi_demo.reference import Reference
from vi_demo.target import Target

KEY = jax.random.key(3)
WORDS = "divergence", "fitter", "status", "notes"


class Killed(BaseException):
    """What stops a run dead, with no time to say anything."""


def killing(after):
    """A report that stops the run dead when it is called for the n-th time."""
    left = [after]

    def report(*_):
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return report


def kept_in(folder, identity="one", seconds=0.0, resume=False, said=None):
    """Checkpoints of a run of some identity, begun."""
    kept = Checkpoints(folder, seconds, resume, tell=[].append if said is None else said.append)
    kept.begin({"name": identity})
    return kept


def same(one, other):
    """That two trees are the same to the bit."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


# Trees, packed


class Pair(NamedTuple):
    one: object
    two: object


@jax.tree_util.register_pytree_node_class
class Network:
    def __init__(self, weights):
        self.weights = weights

    def tree_flatten(self):
        return (self.weights,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


TREES = {
    "words and numbers": {"a": [1, -2.5, "three", None, True], "b": (np.inf, ()), "c": {}},
    "a tuple of a tuple": ((1,), [(2, [3])]),
    "keys that are numbers": {1: 2.0, 3: {0: None}},
    "arrays": [np.arange(3), np.float32(2.5), np.zeros((0, 2)), np.array(7), np.ones(2, bool)],
    "JAX's": (jnp.arange(3.0), jnp.ones(2, jnp.bfloat16), jnp.zeros((2, 0))),
    "of a weak type": [jnp.asarray(1.5), jnp.asarray(2), jnp.broadcast_to(jnp.asarray(0.5), (3,))],
    "named": Pair(Estimate(1.0, np.nan), Draws(np.ones((2, 1)), np.full(2, 0.5))),
    "a dataclass": Reference(
        "smc", True, ("why",), log_p=np.ones(2), routes={"x": Estimate(1, 2)}
    ),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_tree_comes_back_as_it_was(tree):
    packed = packing.packed(tree)
    back = packing.unpacked(
        packed._replace(description=json.loads(json.dumps(packed.description)))
    )
    assert type(back) is type(tree)
    if isinstance(tree, Reference):
        tree, back = vars(tree), vars(back)
    assert str(jax.tree.structure(back)) == str(jax.tree.structure(tree))
    same(back, tree)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        assert type(a) is type(b)
        assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None)


def test_keys_and_networks_come_back():
    tree = {"key": jax.random.split(KEY, 2), "net": Network(jnp.arange(2.0))}
    like = {"key": jax.random.split(KEY, 2), "net": Network(jnp.zeros(2))}
    back = packing.unpacked(packing.packed(tree), like)
    assert (jax.random.key_data(back["key"]) == jax.random.key_data(tree["key"])).all()
    assert isinstance(back["net"], Network)
    assert back["net"].weights.tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="no tree like"):
        packing.unpacked(packing.packed(tree))


def test_what_cannot_be_told_is_named_and_nothing_is_called_up():
    with pytest.raises(TypeError, match="builtins:function"):
        packing.packed({"f": lambda: None})
    with pytest.raises(TypeError, match="not numbers"):
        packing.packed(np.array(["a"]))
    for name in ("os:system", "subprocess:Popen", "vi_demo.checkpoints:Checkpoints", "no:where"):
        told = {"kind": "fields", "of": name, "names": [], "values": []}
        with pytest.raises(ValueError, match="not known here"):
            packing.unpacked(packing.Packed(told, []))


# Fits, stopped between two chunks


def banana(z):
    return -0.5 * (z[0] ** 2 + (z[1] - 0.5 * z[0] ** 2) ** 2 / 0.5)


def rows(y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    x = np.stack([np.ones(6), np.arange(6.0)], 1)
    numpyro.sample("y", dist.Bernoulli(logits=x @ b - 2.0), obs=y)


@pytest.fixture(scope="module")
def targets():
    counts = np.array([0, 0, 1, 0, 1, 1])
    return {
        "banana": Target.from_log_density(banana, 2),
        "rows": Target.from_numpyro(rows, {"y": counts}, name="rows"),
    }


FITS = {
    "natural": ("reverse_kl", "banana", "full_rank", None),
    "adam": ("reverse_kl", "banana", "diagonal", "adam"),
    "forward": ("forward_kl", "banana", "full_rank", None),
    "descent": ("jensen_shannon", "banana", "full_rank", None),
    "laplace": ("laplace", "rows", "full_rank", None),
    "pathfinder": ("pathfinder", "banana", "full_rank", None),
    "ep": ("ep", "rows", "full_rank", None),
}


@pytest.mark.parametrize("case", FITS)
def test_a_fit_that_goes_on_ends_in_the_same_bits(case, targets, tmp_path):
    name, of, guide, optimizer = FITS[case]
    target, family = targets[of], guides.family(guide)
    forward = None
    if name == "jensen_shannon":
        covering = fitting.fit("forward_kl", target, family, KEY)
        forward = lambda: covering  # noqa: E731

    def fit(report):
        return fitting.fit(name, target, family, KEY, report, forward, optimizer)

    told, again = [], []
    whole = fit(lambda *said: told.append(said))
    with kept_in(tmp_path), pytest.raises(Killed):
        fit(killing(len(told)))  # before what the last chunk brought is kept
    with kept_in(tmp_path, resume=True) as kept:
        on = fit(lambda *said: again.append(said))
    assert told[-len(again) :] == again
    if case != "pathfinder":  # whose one chunk is all there is
        assert len(again) < len(told)
    compared = [k for k in vars(on) if k not in ("seconds", "family")]
    same(
        [vars(on)[k] for k in compared if k not in WORDS],
        [vars(whole)[k] for k in compared if k not in WORDS],
    )
    assert [vars(on)[k] for k in WORDS] == [vars(whole)[k] for k in WORDS]
    assert on.seconds["run"] > 0
    # One that is done is finished again without a step.
    with kept_in(tmp_path, resume=True):
        done = fit(killing(1))
    same([done.params, done.history, done.restarts], [whole.params, whole.history, whole.restarts])
    assert [*kept.parts] == [f"{name} by {whole.fitter}, 1"]


def test_learned_parameters_and_a_guide_of_ones_own_go_on(tmp_path):
    def model(y):
        scale = numpyro.param("scale", 2.0, constraint=dist.constraints.positive)
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(0.0, scale)), 1.0), obs=y)

    def guide(y):
        numpyro.sample("m", dist.Normal(numpyro.param("loc", 0.0), numpyro.param("sd", 0.5)))

    def fit(report):
        target = Target.from_numpyro(model, {"y": jnp.array([1.5])})
        return fitting.svi.fit_own(target, target.own_guide(guide), KEY, report)

    told, again = [], []
    whole, target = fit(lambda *said: told.append(said))
    with kept_in(tmp_path), pytest.raises(Killed):
        fit(killing(len(told) // 2))
    with kept_in(tmp_path, resume=True):
        on, resumed = fit(lambda *said: again.append(said))
    assert len(again) == len(told) - len(told) // 2 + 1
    same([on.params, on.history, resumed.learned], [whole.params, whole.history, target.learned])


# Whole runs


def killed_run(folder, after, said, **settings):
    """A run that is killed at its n-th report."""
    with (
        pytest.raises(Killed),
        Checkpoints(folder, 0.0, resume=folder.exists(), tell=said.append),
    ):
        tiny(killing(after), **settings)


def tiny(report=lambda *_: None, **settings):
    target = Target.from_log_density(lambda z: -0.5 * z @ z - 0.1 * (z**4).sum(), 1, "tiny")
    settings = {"draws": 200, "optimizer": "adam", "film": False, **settings}
    return vi_demo.run(target, report=report, **settings)


@pytest.fixture(scope="module")
def uninterrupted():
    """A tiny run, and how often it reports."""
    told = []
    run = tiny(lambda *said: told.append(said), path=3, correct=True)
    return bits(run), len(told)


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_again_and_again_ends_in_the_same_bits(seed, uninterrupted, tmp_path):
    wanted, reports = uninterrupted
    folder, said, moments = tmp_path / "kept", [], random.Random(seed)
    for _ in range(2):
        killed_run(folder, moments.randrange(5, reports // 2), said, path=3, correct=True)
    with Checkpoints(folder, 0.0, resume=True, tell=said.append) as kept:
        run = tiny(path=3, correct=True)
    assert bits(run) == wanted
    assert sum("going on" in line for line in said) == 2
    assert {"reference", "path", "climbs", "seconds of a density"} <= set(kept.parts)
    kept.remove()
    assert not folder.exists()


def test_without_checkpoints_nothing_is_kept_or_imported(tmp_path):
    code = "import sys, vi_demo.study; print('orbax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
    assert not checkpoints.kept()
    assert checkpoints.once("name", lambda: 3) == 3
    state, record = checkpoints.of_fit("name").taken_up(5)
    assert (state, record) == (5, [])
    assert isinstance(checkpoints.of_fit("name"), Track)


# What is on the disk


def three(folder):
    """Three checkpoints, each with one thing more."""
    with kept_in(folder) as kept:
        for i in range(1, 4):
            kept.once(f"part {i}", lambda i=i: {"x": np.arange(50.0) * i, "words": f"no. {i}"})
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return three(tmp_path_factory.mktemp("written") / "kept")


DAMAGE = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
    "flipped": lambda file: file.write_bytes(
        bytes(b ^ 64 * (i % 7 == 3) for i, b in enumerate(file.read_bytes()))
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_damaged_one_nothing_wrong_is_read(damage, written, tmp_path):
    files = [f.relative_to(written) for f in sorted((written / "3").rglob("*")) if f.is_file()]
    left_out = set()
    for file in files:
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        shutil.copytree(written, tmp_path / "kept")
        DAMAGE[damage](tmp_path / "kept" / file)
        said = []
        with kept_in(tmp_path / "kept", resume=True, said=said) as kept:
            found = {k: packing.unpacked(p) for k, p in kept.parts.items()}
        for i in range(1, 2 + len(found) - 1):
            same(found[f"part {i}"]["x"], np.arange(50.0) * i)
            assert found[f"part {i}"]["words"] == f"no. {i}"
        assert len(found) in (2, 3)
        assert said[-1].startswith("going on from the checkpoint of 2")
        if len(found) == 2:
            left_out.add(file.name)
            hidden = not (tmp_path / "kept" / "3" / "commit_success.txt").exists()
            assert hidden or f"{tmp_path / 'kept' / '3'} is damaged and left out" in said[0]
    assert {"0", "metadata"} <= left_out  # the numbers, and what they make up


def test_where_all_are_damaged_the_run_begins_anew(written, tmp_path):
    shutil.copytree(written, tmp_path / "kept")
    for file in tmp_path.rglob("numbers/*/0"):
        file.write_bytes(b"nonsense")
    said = []
    with kept_in(tmp_path / "kept", resume=True, said=said) as kept:
        assert kept.once("part 1", lambda: 7) == 7
    assert [line.partition(" ")[0] for line in said] == ["the"] * 3 + ["beginning"]


def test_a_half_written_one_is_never_read(written, tmp_path):
    shutil.copytree(written, tmp_path / "kept")
    half = tmp_path / "kept" / "4.orbax-checkpoint-tmp"
    shutil.copytree(written / "3", half)
    (half / "commit_success.txt").unlink()
    said = []
    with kept_in(tmp_path / "kept", resume=True, said=said) as kept:
        assert [*kept.parts] == ["part 1", "part 2", "part 3"]
        assert not half.exists()
    assert len(said) == 1


def test_three_are_kept_and_an_earlier_run_s_are_replaced_once_there_is_something(tmp_path):
    folder, said = three(tmp_path / "kept"), []
    with kept_in(folder, seconds=1e9) as kept:
        kept.once("more", lambda: 1)
        assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]
    with kept_in(folder, said=said) as kept:
        assert not kept.parts
        kept.once("more", lambda: 1)
        assert [p.name for p in folder.iterdir()] == ["4"]
        for i in range(4):
            kept.once(f"more {i}", lambda: 1)
        assert sorted(p.name for p in folder.iterdir()) == ["6", "7", "8"]
    assert said == [f"beginning anew; --resume goes on from what {folder} still holds."]


def test_a_full_disk_is_told_once_and_costs_nothing_that_was_written(tmp_path, monkeypatch):
    folder, said = tmp_path / "kept", []
    with kept_in(folder, said=said) as kept:
        kept.once("first", lambda: np.ones(3))
        with monkeypatch.context() as full:
            manager = type(kept._manager)

            def save(self, step, **_):
                (folder / f"{step}.orbax-checkpoint-tmp").mkdir()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            full.setattr(manager, "save", save)
            for name in ("second", "third"):
                assert kept.once(name, lambda: np.ones(2)).tolist() == [1.0, 1.0]
        assert [p.name for p in folder.iterdir()] == ["1"]
        assert said == [
            f"no checkpoint could be written to {folder} (no space left on the disk); going on."
        ]
        kept.once("fourth", lambda: 4)
    with kept_in(folder, resume=True) as kept:
        assert [*kept.parts] == ["first", "second", "third", "fourth"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted") / "kept"
    killed_run(folder, 12, [])
    return folder


def test_a_checkpoint_of_another_run_is_refused_by_name(interrupted, monkeypatch):
    def refused(**settings):
        with (
            pytest.raises(InputError) as error,
            Checkpoints(interrupted, 0.0, resume=True, tell=[].append),
        ):
            tiny(**settings)
        text = str(error.value)
        assert "\n" not in text
        assert text.startswith(f"{interrupted} holds a checkpoint of another run: ")
        assert text.endswith("or leave --resume out to begin this one anew.")
        return text

    assert "run: seed was 0 and is 1; run" in refused(seed=1)
    both = refused(draws=300, fits="reverse_kl", budget=9.0)
    assert "draws was 200 and is 300" in both
    assert "fits was reverse_kl, forward_kl and is reverse_kl;" in both
    assert "budget was 60.0 and is 9.0" in both
    versions = vi_demo.study.versions()
    monkeypatch.setattr(vi_demo.study, "versions", lambda: {**versions, "numpyro": "0.99"})
    assert f"run: numpyro was {versions['numpyro']} and is 0.99; run" in refused()


def test_another_model_or_other_data_are_refused(tmp_path):
    file = tmp_path / "line.py"

    def run(text, report=lambda *_: None, resume=True, **data):
        file.write_text(text)
        loaded = loading.load(str(file))
        loaded = loaded._replace(data={**loaded.data, **data})
        with Checkpoints(tmp_path / "kept", 0.0, resume, tell=[].append):
            vi_demo.run(loaded, draws=200, optimizer="adam", film=False, report=report)

    with pytest.raises(Killed):
        run(FILE, killing(10), resume=False)
    with pytest.raises(
        InputError, match="run: the model's file has changed; what the model computes"
    ):
        run(FILE.replace("0.5)", "0.6)"))
    with pytest.raises(InputError, match="run: the data have changed; what the model computes"):
        run(FILE, y=np.arange(6.0))
    with pytest.raises(Killed):  # the same again is taken up
        run(FILE, killing(2))


# SIGTERM, SIGKILL


def test_sigterm_keeps_all_and_says_how_to_go_on(tmp_path):
    folder, before = tmp_path / "kept", signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match=f"--resume goes on from {folder}"):  # noqa: SIM117
        with kept_in(folder, seconds=1e9) as kept:
            kept.once("first", lambda: 1)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) is before
    with kept_in(folder, resume=True) as kept:
        assert [*kept.parts] == ["first"]
    with pytest.raises(Terminated, match="nothing yet to keep"):  # noqa: SIM117
        with kept_in(tmp_path / "none"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)


def test_sigterm_while_one_is_written_lets_it_be_whole(tmp_path):
    folder, packed = tmp_path / "kept", packing.packed(np.ones(3))

    def pack():
        os.kill(os.getpid(), signal.SIGTERM)
        return packed

    with pytest.raises(Terminated, match="goes on"), kept_in(folder) as kept:
        kept.keep("part", pack)
        time.sleep(10)
    with kept_in(folder, resume=True) as kept:
        assert [*kept.parts] == ["part"]


@pytest.fixture(scope="session")
def shell(tmp_path_factory):
    """A function that starts vi-demo run on the line, and the folder it runs in."""
    home = tmp_path_factory.mktemp("shell")
    (home / "line.py").write_text(TIMELESS)
    cache = {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    common = ["run", "line.py", "--optimizer=adam", "--draws=200", "--no-film", "--fit=reverse_kl"]

    def start(*options):
        return subprocess.Popen(
            [sys.executable, "-m", "vi_demo", *common, *options],
            cwd=home,
            env=cache,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start, home


@pytest.fixture(scope="session")
def finished(shell):
    """What the command makes when nothing comes in between."""
    start, home = shell
    assert done(start("--out", "whole"))[0] == 0
    assert not (home / "whole" / ".checkpoints").exists()
    return bits(vi_demo.load(home / "whole"))


def done(process):
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


def test_a_command_that_is_terminated_goes_on(shell, finished):
    start, home = shell
    process = start("--out", "term", "--checkpoint", "1000")
    until(process, "reverse KL:")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    status, stderr = done(process)
    assert status == 143
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("vi-demo: terminated; the same command with --resume goes on from")
    assert "Traceback" not in stderr
    assert [p.name for p in (home / "term").iterdir()] == [".checkpoints"]
    other, stderr = done(start("--out", "term", "--resume", "--seed", "1"))
    assert other == 2
    assert "seed was 0 and is 1" in stderr.splitlines()[-1]
    status, stderr = done(start("--out", "term", "--resume", "--quiet"))
    assert status == 0, stderr
    assert stderr.startswith("vi-demo: going on from the checkpoint of")
    assert len(stderr.splitlines()) == 1  # Orbax says nothing
    assert bits(vi_demo.load(home / "term")) == finished
    assert not (home / "term" / ".checkpoints").exists()


def until(process, phase):
    """Wait until the command says that it has come to a phase."""
    for line in process.stderr:
        if line.startswith(phase):
            return


def halves(folder):
    return {path.name for path in folder.glob(checkpoints.HALF)}


def wait_for_writes(process, folder, number):
    """Wait until so many checkpoints have been begun, the last of them just now."""
    seen = set()
    while process.poll() is None and len(seen) < number:
        seen |= halves(folder)
        time.sleep(0.001)


def kill_and_go_on(shell, finished, out, moments):
    """Kill the command at a random moment or in the middle of a write, and go on with it."""
    start, home = shell
    folder = home / out / ".checkpoints"
    process = start("--out", out, "--checkpoint", "0")
    until(process, "reference:")
    if moments.random() < 0.5:
        time.sleep(moments.uniform(0.0, 4.0))
    else:
        wait_for_writes(process, folder, moments.randrange(1, 12))
        time.sleep(moments.uniform(0.0, 0.02))
    process.send_signal(signal.SIGKILL)
    killed, _ = done(process)
    half = bool(halves(folder))
    status, stderr = done(start("--out", out, "--resume", "--checkpoint", "0", "--quiet"))
    assert status == 0, stderr
    assert "Traceback" not in stderr
    assert "damaged" not in stderr
    assert bits(vi_demo.load(home / out)) == finished
    assert not folder.exists()
    return killed, half, "going on" in stderr


def test_a_command_that_is_killed_goes_on(shell, finished):
    killed, _, _ = kill_and_go_on(shell, finished, "killed", random.Random(1))
    assert killed == -signal.SIGKILL


@pytest.mark.panel
def test_twenty_kills_at_random_moments(shell, finished):
    moments = random.Random(2)
    seen = [kill_and_go_on(shell, finished, f"killed-{i}", moments) for i in range(20)]
    print(*seen, sep="\n")
    assert sum(killed == -signal.SIGKILL for killed, _, _ in seen) >= 18
    assert sum(half for _, half, _ in seen) >= 4
    assert sum(on for _, _, on in seen) >= 15


def test_a_disk_that_is_full_when_the_run_is_saved_is_told_in_a_line(tmp_path):
    def full(path):
        path.write_text("some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    results.write(tmp_path, {"summary.json": lambda path: path.write_text("before")})
    with pytest.raises(InputError, match="no space is left on the disk"):
        results.write(tmp_path, {"summary.json": lambda path: path.write_text("x"), "more": full})
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "before"
