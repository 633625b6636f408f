"""The command line: read, run, write, and say what came of it.

Nothing here imports JAX before there is something to compute, so help and errors come at once.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import click

from vi_demo import draws as drawn
from vi_demo.approximations import APPROXIMATIONS
from vi_demo.divergences import described
from vi_demo.errors import InputError, Terminated, is_within
from vi_demo.startup import (
    ask_for_double,
    heed_signals,
    in_either_precision,
    joined,
    keep_bytecode,
    mesh_of_all,
    prepare,
)

FITS = ("reverse_kl", "forward_kl")  # unless others are asked for
GUIDES = ("diagonal", "full_rank", "low_rank:K", "mixture:K", "flow", "own")
REFERENCES = ("auto", "quadrature", "smc", "nuts", "none")
DATA = "csv, json, npz, netCDF, zarr or Parquet; names = model arguments."
FILMS = ("mp4", "gif", "webp")
PICTURES = ("fit", "evidence", "path")  # those of a run that are files of their own
EXPLORER = "explorer.html"
NO_USABLE_FIT, INTERRUPTED, TERMINATED = 3, 130, 143
AS_BEFORE = "interrupted; files that were there before are as they were."
CHECKPOINT = 60.0  # seconds between two, unless told otherwise


def main(arguments: list[str] | None = None) -> None:
    """Run `vi-demo` and exit: 0 done, 1 an error inside, 2 unusable input, 3 with --strict."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_bytecode()
    heed_signals()
    try:
        status = vi_demo.main(
            arguments, prog_name="vi-demo", standalone_mode=False, obj=list(arguments)
        )
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = 2
    except click.ClickException as error:
        status = complain(error.format_message())
    except InputError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        status = complain(str(error))
    except (KeyboardInterrupt, click.Abort):
        complain(AS_BEFORE)
        status = INTERRUPTED
    except Terminated as error:
        complain(str(error))
        status = TERMINATED
        if "vi_demo.processes" in sys.modules:
            os._exit(status)  # the others end too, which there is no need to tell
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if is_within(error, KeyboardInterrupt):
            complain(AS_BEFORE)
            sys.exit(INTERRUPTED)
        if "vi_demo.processes" in sys.modules:
            sys.modules["vi_demo.processes"].wait_if_lost(error)
        words = " ".join(str(error).split())[:300]
        complain(
            f"an error inside vi-demo, {type(error).__name__}: {words} "
            "(--debug shows where; please report it)."
        )
        status = 1
    sys.exit(status or 0)


def complain(message: str) -> int:
    """One line on standard error; the exit status of unusable input."""
    click.echo(f"vi-demo: {' '.join(message.split())}", err=True)
    return 2


class Named(click.ParamType):
    """One of some names, some of which take a number after a colon: alpha:0.5."""

    name = "name"

    def __init__(self, plain: list[str], numbered: list[str], number: type, letter: str):
        self.plain, self.numbered, self.number = plain, numbered, number
        self.choices = [*plain, *(f"{name}:{letter}" for name in numbered)]

    def convert(self, value, param, ctx):
        """The name itself, if it is one; what its number may be is seen later."""
        base, colon, number = value.partition(":")
        if not colon and value in self.plain:
            return value
        if colon and base in self.numbered:
            with contextlib.suppress(ValueError):
                return f"{base}:{self.number(number):g}"
        self.fail(f"'{value}' is not one of {', '.join(self.choices)}.", param, ctx)


class NamedOrFile(click.ParamType):
    """One of some names, or a file of draws that exists."""

    name = "name"

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def convert(self, value, param, ctx):
        """The name or the path itself."""
        if value in self.names or drawn.is_file(value):
            return value
        endings = " or ".join(drawn.ENGINES)
        self.fail(
            f"'{value}' is not one of {', '.join(self.names)}, nor a {endings} file of draws that "
            "exists.",
            param,
            ctx,
        )


FIT = Named([*described(), *APPROXIMATIONS], list(described("WITH_PARAMETER")), float, "A")
GUIDE = Named(
    *([g for g in GUIDES if ":" not in g], [g[:-2] for g in GUIDES if ":" in g], int, "K")
)


def fits_help() -> str:
    """What can be fitted, divergences and approximations, a line each."""
    numbered = {f"{k}:A": text for k, text in described("WITH_PARAMETER").items()}
    every = described() | numbered | APPROXIMATIONS
    rows = [f"  {name:<20} {text}" for name, text in every.items()]
    return "\b\nWhat can be fitted (p the target, q the guide, r = log p − log q):\n" + "\n".join(
        rows
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vi-demo", prog_name="vi-demo")
def vi_demo() -> None:
    """Fit a NumPyro model in both directions of KL, and say what each fit missed."""


@vi_demo.command(epilog=fits_help())
@click.argument("model")
@click.option(
    "--data", metavar="FILE", help="csv, json, npz, netCDF, zarr or Parquet; names = arguments."
)
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Read rows of a Parquet or zarr FILE as they are wanted, as is done with more than a "
    "gigabyte of them.",
)
@click.option(
    "--fit",
    "fits",
    multiple=True,
    type=FIT,
    metavar="NAME",
    help=f"What to fit, see below; may be repeated.  [default: {', '.join(FITS)}]",
)
@click.option(
    "--path",
    type=click.IntRange(min=3),
    metavar="K",
    help="Follow alpha from reverse to forward KL in K steps.",
)
@click.option(
    "--guide",
    type=GUIDE,
    metavar="NAME",
    default="full_rank",
    show_default=True,
    help=f"{', '.join(GUIDES)}.",
)
@click.option(
    "--reference",
    type=NamedOrFile(REFERENCES),
    metavar="NAME",
    default="auto",
    show_default=True,
    help=f"{', '.join(REFERENCES)}, or an ArviZ file of trusted draws.",
)
@click.option(
    "--quantity",
    multiple=True,
    metavar="SITE",
    help="A site, deterministic ones too, whose means, sds and quantiles get verdicts of their "
    "own; may be repeated.",
)
@click.option(
    "--correct",
    is_flag=True,
    help="Climb a ladder of corrections until one is right, and save its draws.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["natural", "adam"]),
    help="Of reverse KL.  [default: natural gradients where they can, else adam]",
)
@click.option(
    "--film/--no-film",
    default=None,
    help="Record the way down of each divergence and write it as fit.mp4 or fit.gif.  "
    "[default: recorded up to 2 dimensions]",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for the reference to grow until it is precise enough.",
)
@click.option(
    "--mesh",
    metavar="MESH",
    help="Devices along draws and along rows of the data, draws=4,rows=2; auto takes all of them.",
)
@click.option(
    "--distributed", is_flag=True, help="Be one of those that Slurm, MPI or Kubernetes ran."
)
@click.option("--coordinator", metavar="HOST:PORT", help="The same without: where the first is,")
@click.option("--processes", type=click.IntRange(min=1), help="how many there are,")
@click.option("--process", type=click.IntRange(min=0), help="and which this one is, from 0.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option(
    "--draws",
    type=click.IntRange(min=100),
    default=4000,
    show_default=True,
    help="Draws kept of each fit.",
)
@click.option("--out", metavar="DIR", help="Folder of the results.  [default: runs/<model>]")
@click.option(
    "--checkpoint",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Keep a checkpoint in DIR every so many seconds, and one on SIGTERM, until the run is "
    f"saved.  [default: {CHECKPOINT:g} with --resume, else none]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the newest checkpoint in DIR, or from the beginning where there is none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, nothing else.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--strict", is_flag=True, help="Exit with 3 where no fit is usable.")
@click.option("--timings", is_flag=True, help="Say where each second went.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_obj
def run(
    typed,
    model,
    data,
    stream,
    fits,
    out,
    checkpoint,
    resume,
    as_json,
    quiet,
    strict,
    timings,
    debug,
    distributed,
    **settings,
) -> int:
    """Fit, diagnose and save MODEL.

    MODEL is path/file.py[:function], package.module:function or the name of a bundled model; or
    an ArviZ file of anybody's draws, .nc or .zarr, which forward KL is fitted to.
    """
    from vi_demo import loading, results
    from vi_demo.pictures import terminal
    from vi_demo.timings import Timings, compiling

    ask_for_double()
    others = [settings.pop(k) for k in ("coordinator", "processes", "process")]
    distributed |= any(word is not None for word in others)
    first = joined(*others) if distributed else True
    quiet |= not first
    timed = Timings()
    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with aside, terminal.progress(quiet) as bars, contextlib.ExitStack() as watched:
        report = timed.watching(bars)
        report("start", 0.0, f"importing {model} and what it needs")
        of_draws = drawn.is_file(model)
        if of_draws and stream:
            raise InputError(f"{model} is a file of draws, which are held; leave --stream out.")
        loaded = model if of_draws else loading.load(model, data, stream=stream)
        if distributed and settings["mesh"] is None:
            settings["mesh"] = mesh_of_all(loaded)
        out = Path(out or Path("runs") / (Path(model).stem if of_draws else loaded.name))
        results.check_folder(out)
        report("start", 0.5, "importing JAX and NumPyro")
        prepare()
        spans = watched.enter_context(compiling())
        kept = keeping(out, checkpoint, resume)
        watched.enter_context(kept or contextlib.nullcontext())
        from vi_demo import processes, study

        tree = in_either_precision(
            complain,
            study.run,
            loaded,
            data if of_draws else None,
            fits=tuple(dict.fromkeys(fits)) or None,
            report=report,
            **settings,
        )
        if not first:
            processes.leave()
        command = [word for word in typed if word != "--resume"]  # as it makes the whole run
        results.note_command(tree, shlex.join(["vi-demo", *command]))
        report("save", 0.0, "drawing")
        writers = pictures_of(tree)
        if settings["film"]:
            try:
                made = filmed(tree, model)
                writers[f"fit.{made.format}"] = made.save
            except InputError as error:  # a density so slow that no way was recorded
                complain(f"no film was made: {error}")
        results.save(tree, out, writers)
        if kept:
            kept.remove()
        report("save", 1.0, str(out))
        seconds = timed.seconds(spans)
    summary = results.summary(tree)
    if as_json:
        click.echo(tree.attrs["summary"])
    elif not quiet:
        terminal.show(summary, out)
    if timings and not quiet:
        terminal.show_timings(seconds, aside=as_json)
    if distributed:
        processes.leave()
    usable = any(fit["verdict"] in results.USABLE for fit in summary["fits"].values())
    return NO_USABLE_FIT if strict and not usable else 0


def keeping(out: Path, seconds: float | None, resume: bool):
    """The checkpoints of a run in its folder, where they are asked for."""
    from vi_demo.checkpoints import FOLDER, Checkpoints

    if seconds is None and not resume:
        return None
    seconds = CHECKPOINT if seconds is None else seconds
    return Checkpoints(out / FOLDER, seconds, resume, tell=complain)


def pictures_of(tree) -> dict[str, Callable]:
    """Writers of a run's report, and of the figures that are files of their own."""
    from vi_demo import results
    from vi_demo.pictures import figures, report

    tell_of_letters(tree)
    drawn = figures.drawn(tree)
    page = report.page(tree, drawn)
    own = {name: drawn[name] for name in PICTURES if name in drawn}
    return figures.writers(own) | {results.REPORT: writing(page)}


def tell_of_letters(tree) -> None:
    """Say in a line, rather than in Matplotlib's many, which letters of names no font has."""
    from vi_demo.pictures import contents, drawing

    names = "".join(c.title for c in contents.coordinates(tree))
    if letters := drawing.letters_without_font(names):
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        complain(f"no font here has {letters}: boxes in pictures, unless Noto Sans CJK is there")


def writing(page: str) -> Callable[[Path], None]:
    """How a page is written to a path."""
    return lambda path: path.write_text(page, encoding="utf-8")


@vi_demo.command("report")
@click.argument("folder", metavar="DIR")
@click.option("--out", metavar="FILE", help="Where to write it.  [default: DIR/report.html]")
@click.option("--open/--no-open", "opens", default=False, help="Show it in the browser.")
@click.option(
    "--figures",
    "suffix",
    type=click.Choice(["png", "svg", "pdf"]),
    help="Write every figure beside it, too, as files of this kind.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def draw_report(folder, out, opens, suffix, debug) -> None:
    """Draw report.html of a saved run anew, from DIR, the folder that vi-demo run made.

    It is one page that needs no other file and no network.
    """
    from vi_demo import results

    tree = results.load(folder)
    results.summary(tree)  # refused now, if it is damaged
    home = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    out = Path(out) if out else home / results.REPORT
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file with --out.")
    results.check_folder(out.parent)
    from vi_demo.pictures import figures, report

    tell_of_letters(tree)
    drawn = figures.drawn(tree)
    more = figures.writers(drawn, suffix) if suffix else {}
    results.write(out.parent, {out.name: writing(report.page(tree, drawn)), **more})
    click.echo(f"Saved {out}" + f" and {', '.join(more)} beside it" * bool(more))
    if opens and click.launch(str(out)):
        raise InputError(f"no browser could be started; open {out} in one.")


@vi_demo.command()
@click.argument("model")
@click.option(
    "--data", metavar="FILE", help="csv, json, npz, netCDF, zarr or Parquet; names = arguments."
)
@click.option(
    "--fit",
    metavar="NAME",
    default="reverse_kl",
    show_default=True,
    help="reverse_kl or forward_kl.",
)
@click.option(
    "--guide",
    metavar="NAME",
    default="full_rank",
    show_default=True,
    help="diagonal or full_rank.",
)
@click.option(
    "--refits",
    type=click.IntRange(min=20),
    default=200,
    show_default=True,
    help="Data sets simulated and fitted.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option(
    "--out", metavar="DIR", help="Folder of the results.  [default: runs/<model>-calibration]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, nothing else.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def calibrate(model, data, out, as_json, quiet, debug, **settings) -> None:
    """Say whether fits of MODEL to simulated data hold the truth as often as they claim.

    Parameters are drawn from the prior, data given them; each data set is fitted, and the truth
    ranked among draws of the fit (simulation-based calibration). What is found holds on average
    over the prior. MODEL as in `vi-demo run`, with a proper prior on every site.
    """
    from vi_demo import loading, results
    from vi_demo.pictures import terminal

    ask_for_double()
    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with aside, terminal.progress(quiet) as report:
        of_draws = drawn.is_file(model)
        loaded = model if of_draws else loading.load(model, data)
        name = Path(model).stem if of_draws else loaded.name
        out = Path(out or Path("runs") / f"{name}-calibration")
        results.check_folder(out)
        prepare()
        from vi_demo import calibration

        tree = in_either_precision(
            complain,
            calibration.calibrate,
            loaded,
            data if of_draws else None,
            report=report,
            **settings,
        )
        report("save", 0.0, "drawing")
        from vi_demo.pictures import calibration as pictures
        from vi_demo.pictures import drawing

        writers = results.files(tree, results.CALIBRATION, results.CALIBRATION_SUMMARY)
        picture = pictures.calibration_figure(tree)
        if picture is not None:
            writers["calibration.png"] = lambda path: drawing.save(picture, path)
        results.write(out, writers)
    if as_json:
        click.echo(tree.attrs["summary"])
    elif not quiet:
        pictures.show(results.summary(tree), out)


@vi_demo.command()
@click.argument("model")
@click.option(
    "--data", metavar="FILE", help="csv, json, npz, netCDF, zarr or Parquet; names = arguments."
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def check(model, data, debug) -> None:
    """Say what MODEL is made of and which divergences can be fitted to it.

    MODEL as in `vi-demo run`.
    """
    from vi_demo import loading

    ask_for_double()
    loaded = model if drawn.is_file(model) else loading.load(model, data)
    prepare()
    from vi_demo import preflight

    def say(*arguments):
        for line in preflight.lines(*arguments):
            click.echo(line)

    in_either_precision(complain, say, loaded, data if loaded is model else None)


class Pixels(click.ParamType):
    """A size in pixels, 900x480."""

    name = "size"

    def convert(self, value, param, ctx):
        """Width and height."""
        if isinstance(value, tuple):
            return value
        sides = value.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() for side in sides):
            self.fail(f"'{value}' is not a size in pixels such as 900x480.", param, ctx)
        return tuple(map(int, sides))


@vi_demo.command()
@click.argument("folder", metavar="DIR")
@click.option(
    "--format",
    type=click.Choice(FILMS),
    help="[default: mp4 where ffmpeg is on the path, else gif]",
)
@click.option("--fps", type=click.IntRange(1, 100), default=25, show_default=True)
@click.option(
    "--size", type=Pixels(), metavar="WxH", default="900x480", show_default=True, help="In pixels."
)
@click.option(
    "--site",
    "sites",
    multiple=True,
    metavar="NAME",
    help="One of two coordinates to show of more than two dimensions, such as 'theta[3]'.  "
    "[default: those that part most]",
)
@click.option(
    "--start",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which start is drawn strongly.",
)
@click.option("--out", metavar="FILE", help="[default: fit.mp4 or so in DIR]")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def animate(folder, out, debug, **settings) -> None:
    """Show the run saved in DIR as a film: each guide on its way down its divergence."""
    from vi_demo import results

    ending = Path(out).suffix[1:].lower() if out else None
    if ending and (ending not in FILMS or settings["format"] not in (None, ending)):
        wanted = settings["format"] or ", ".join(FILMS)
        raise InputError(f"{out}: a film of that ending cannot be made; choose {wanted}.")
    settings["format"] = settings["format"] or ending or None
    run = results.load(folder)
    tell_of_letters(run)
    made = filmed(run, folder, **settings)
    path = Path(out) if out else Path(folder) / f"fit.{made.format}"
    results.write(path.parent, {path.name: made.save})
    click.echo(f"Saved {path}")


def filmed(run, name, **settings):
    """The film of a run; what cannot be shown is told in a line."""
    from vi_demo.pictures import film

    try:
        return film.animate(run, **settings)
    except ValueError as error:
        raise InputError(f"{name}: {error}.") from error


@vi_demo.command()
@click.argument("what", metavar="[RUN|MODEL]", required=False)
@click.option(
    "--site",
    "sites",
    multiple=True,
    metavar="NAME",
    help="One of at most two coordinates of the run, such as 'theta[3]'.  "
    "[default: all of two dimensions, else those that fits miss most]",
)
@click.option("--out", metavar="FILE", help="[default: explorer.html in RUN, or here]")
@click.option("--open/--no-open", "opens", default=True, help="Show it in the browser.")
@click.option("--serve", is_flag=True, help="Serve it on 127.0.0.1 until interrupted.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def explore(what, sites, out, opens, serve, debug) -> None:
    """Write a page on which q can be dragged over a target, both directions of KL beside it.

    RUN is a folder that vi-demo run made, whose density and fits are then on the page. A MODEL, as
    in vi-demo run, is fitted first, with all that vi-demo run takes by itself, unless
    runs/<model> holds a run of it. The page needs no network.
    """
    from vi_demo import results
    from vi_demo.pictures import explorer

    folder, model = run_of(what)
    if sites and not folder:
        raise InputError("--site names a coordinate of a run; give the run's folder, too.")
    home = Path() if folder is None else folder.parent if folder.is_file() else folder
    out = Path(out) if out else home / EXPLORER
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file with --out.")
    results.check_folder(out.parent)
    if model:
        fit_unless_there(folder, model)
    saved = folder and results.load(folder)
    try:
        page = explorer.page(saved, sites, str(folder or ""))
    except ValueError as error:
        raise InputError(f"{what} cannot be explored: {error}.") from error
    results.write(out.parent, {out.name: writing(page)})
    click.echo(f"Saved {out}")
    if serve:
        hand_out(page, opens)
    elif opens and click.launch(str(out)):
        raise InputError(f"no browser could be started; open {out} in one.")


def run_of(what: str | None) -> tuple[Path | None, str | None]:
    """The folder of a run, and the model that it is, or will be, a run of where one is named."""
    from vi_demo import loading, results

    if what is None or Path(what).is_dir() or Path(what).suffix == ".nc":
        return what and Path(what), None
    named = Path("runs") / what
    if what not in loading.bundled() and (named / results.POSTERIOR).is_file():
        return named, None
    return Path("runs") / loading.name_of(what), what


def fit_unless_there(folder: Path, model: str) -> None:
    """See to a run of a model in its folder; one that is there is used as it is."""
    from vi_demo import results

    if (folder / results.POSTERIOR).is_file():
        click.echo(f"Using the run in {folder}/; vi-demo run {model} makes it anew")
        return
    run.main([model], prog_name="vi-demo run", standalone_mode=False, obj=["run", model])


def hand_out(page: str, opens: bool) -> None:
    """Serve one page to this machine alone, until interrupted."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path.partition("?")[0] in ("/", f"/{EXPLORER}")
            body = page.encode() if found else b"not here"
            self.send_response(200 if found else 404)
            kind = "text/html" if found else "text/plain"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        click.echo(f"Serving {address} (Ctrl-C ends it)")
        if opens:
            click.launch(address)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


@vi_demo.command()
def models() -> None:
    """List the bundled models."""
    from vi_demo import loading

    files = loading.bundled()
    width = max(map(len, files))
    for name, file in files.items():
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        click.echo(f"{name:<{width}}  {docstring.partition(chr(10))[0]}")


if __name__ == "__main__":
    main()
