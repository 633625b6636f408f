"""Write what is generated of the documentation: the API reference, and notebooks as Markdown.

    uv run python docs/make.py api                        docs/api.md
    uv run python docs/make.py notebooks inspect_a_run    docs/notebooks/inspect_a_run.md

A name in `PUBLIC` is one that users may rely on; its docstring is all that the reference says.
"""

import base64
import importlib
import inspect
import os
import re
import tempfile
from pathlib import Path
from types import FunctionType

import click

DOCS = Path(__file__).parent
NOTEBOOKS = DOCS.parent / "notebooks"
WIDTH = 88  # of a signature on one line
CELL_SECONDS = 600

# Each module's names in the order of the page; None stands for all that it defines. Before them
# come the functions of its table, where there is one: what is added to a table is public.
PUBLIC = {
    "vi_demo": [
        *("run", "load", "save", "summary", "draw", "predict", "calibrate", "check", "explore"),
        "prepare",
        *("Target", "Target.from_numpyro", "Target.from_log_density", "Target.from_draws"),
        "InputError",
    ],
    "vi_demo.checkpoints": ["Checkpoints"],
    "vi_demo.record": [],
    "vi_demo.pictures.figures": [],
    "vi_demo.pictures.drawing": ["save"],
    "vi_demo.pictures.calibration": ["calibration_figure"],
    "vi_demo.divergences.generators": ["alpha", "renyi", "named", "mean"],
    "vi_demo.divergences.exact": [
        *("discrete", "entropy", "cross_entropy"),
        *("additive_smoothing", "label_smoothing", "mixing"),
        *("gaussian_kl", "gaussian_renyi", "gaussian_bhattacharyya"),
        *("gaussian_squared_hellinger", "gaussian_wasserstein", "quadrature"),
    ],
    "vi_demo.divergences.estimators": [
        *("Estimate", "k1", "k2", "k3", "from_guide", "from_target", "self_normalised"),
        *("nearest_neighbour", "average", "effective_sample_size"),
        *("Draws", "equal_weights", "resample", "expectation", "divergence"),
    ],
    "vi_demo.divergences.critics": None,
    "vi_demo.divergences.transport": None,
    "vi_demo.divergences.applied": None,
    "vi_demo.weights": ["pareto_khat", "pareto_smoothed", "importance_evidence"],
    "vi_demo.guides": ["family", "Family"],
    "vi_demo.fitting": ["fit"],
    "vi_demo.fitting.runner": ["Fitter", "Assessment", "Fit", "run"],
    "vi_demo.reference": ["Reference", "build"],
}
TABLES = {
    "vi_demo.pictures.figures": "FIGURES",
    "vi_demo.divergences.generators": "F_DIVERGENCES",
    "vi_demo.guides": "FAMILIES",
}
SIGNS = re.compile(r"\*|<(?=[a-zA-Z/!])|(?<=\])\(|(?<!\w)_")  # that Markdown would take as its own
HEAD = """\
# API reference

<!-- Written by `uv run python docs/make.py api` from the docstrings; edit those. -->

p is the target and q the guide, r = log p − log q; divergences and energies are in nats. What
stands first, `vi_demo` itself, is all that a run takes. The other modules are what it is made of
and can be used on their own. What is not here may change at any time.
"""


@click.group()
def main():
    """Write what is generated of the documentation."""


@main.command("api")
def write_api():
    """Write docs/api.md."""
    (DOCS / "api.md").write_text(api(), encoding="utf-8")


@main.command("notebooks")
@click.argument("names", nargs=-1, required=True)
def write_notebooks(names):
    """Execute notebooks and write each, with its figures, to docs/notebooks/."""
    for name in names:
        render(NOTEBOOKS / f"{Path(name).stem}.py", DOCS / "notebooks")


# The API reference


def api() -> str:
    """The text of docs/api.md."""
    names = {module: names_of(module) for module in PUBLIC}
    titles = [t for m, some in names.items() for t in (m, *(f"{m}.{n}" for n in some))]
    at = dict(zip(titles, anchors(["API reference", *titles])[1:], strict=True))
    contents, parts = [], []
    for module, some in names.items():
        links = ", ".join(f"[`{name}`](#{at[f'{module}.{name}']})" for name in some)
        contents.append(f"- [{module}](#{at[module]})" + (f": {links}" if links else ""))
        parts += [about(module), *(entry(module, name) for name in some)]
    return "\n\n".join([HEAD.strip(), "\n".join(contents), *parts]) + "\n"


def names_of(module: str) -> list[str]:
    """The public names of a module."""
    found = importlib.import_module(module)
    if PUBLIC[module] is None:
        return [name for name, _ in defined(found)]
    table = getattr(found, TABLES[module]) if module in TABLES else ()
    rows = table.values() if isinstance(table, dict) else table
    return [*(getattr(row, "draw", row).__name__ for row in rows), *PUBLIC[module]]


def defined(module) -> list[tuple[str, object]]:
    """The functions and classes without an underscore that a module itself defines."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        if inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))
    ]


def anchors(headings: list[str]) -> list[str]:
    """The names by which links find the headings of a page, as GitHub makes them."""
    found: list[str] = []
    for heading in headings:
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(name == plain or name.startswith(f"{plain}/") for name in found)
        found.append(f"{plain}/{again}" if again else plain)
    return [name.replace("/", "-") for name in found]


def about(module: str) -> str:
    """The heading and docstring of a module; the layout that a record is, as it is laid out."""
    text = inspect.getdoc(importlib.import_module(module))
    first, _, rest = text.partition("\n\n")
    laid_out = module == "vi_demo.record"
    text = f"{escaped(first)}\n\n```text\n{rest}\n```" if laid_out else escaped(text)
    return f"## {module}\n\n{text}"


def entry(module: str, name: str) -> str:
    """The heading, signature and docstring of one name."""
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    parts = [f"### {module}.{name}", f"```python\n{signature(name, value)}\n```"]
    return "\n\n".join([*parts, escaped(inspect.getdoc(value))])


def signature(name: str, value) -> str:
    """How a function or a named tuple is called, on several lines where one is too long."""
    if inspect.isclass(value) and not hasattr(value, "_fields"):
        return f"class {name}"
    found = inspect.signature(value)
    parameters = [p.replace(**bare(p)) for p in found.parameters.values()]
    found = found.replace(
        parameters=parameters, return_annotation=written(found.return_annotation)
    )
    name = f"class {name}" if inspect.isclass(value) else name
    text = f"{name}{found}"
    if len(text) <= WIDTH:
        return text
    arguments, returns = str(found.replace(return_annotation=found.empty)), str(found)
    listed = [str(p) for p in parameters]
    by_name = [p.kind is p.KEYWORD_ONLY for p in parameters]
    if any(by_name) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        listed.insert(by_name.index(True), "*")
    lines = "".join(f"    {line},\n" for line in listed)
    return f"{name}(\n{lines}){returns[len(arguments) :]}"


def bare(parameter: inspect.Parameter) -> dict:
    """Its annotation without quotes, its default without an address."""
    default = parameter.default
    if isinstance(default, FunctionType):
        default = written(default.__name__)
    return {"annotation": written(parameter.annotation), "default": default}


def written(text):
    """An annotation that was a text, as it was written."""
    text = getattr(text, "__forward_arg__", text)  # of a named tuple's field
    if not isinstance(text, str):
        return text
    return type("Written", (), {"__repr__": lambda self: text})()


def escaped(text: str) -> str:
    """A docstring as Markdown, in which signs outside of code stand for themselves."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("    "):  # a formula on a line of its own
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [SIGNS.sub(r"\\\g<0>", part) for part in parts[::2]]
            line = "".join(parts)
        lines.append(line)
    return "\n".join(lines)


# Notebooks


def render(path: Path, folder: Path) -> None:
    """Execute a notebook in a folder of its own; write it as Markdown, its figures beside it."""
    import jupytext
    from nbconvert import MarkdownExporter

    notebook = jupytext.read(path)
    with tempfile.TemporaryDirectory() as fresh:
        execute(notebook, fresh)
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(notebook, {"unique_key": path.stem})
    if fresh in text:
        raise click.ClickException(f"{path.name}: its output names the folder that it ran in.")
    text, films = apart(text, path.stem)
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{path.stem}_*.*"):
        old.unlink()
    for name, data in (resources["outputs"] | films).items():
        (folder / name).write_bytes(data)
    (folder / f"{path.stem}.md").write_text(plain_tables(text), encoding="utf-8")


def apart(text: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """The text, and the films in it as files: pages show what lies beside them alone."""
    films: dict[str, bytes] = {}

    def taken(found) -> str:
        name = f"{stem}_film_{len(films)}.gif"
        films[name] = base64.b64decode(found[1])
        return f'src="{name}"'

    return re.sub(r'src="data:image/gif;base64,([^"]*)"', taken, text), films


def execute(notebook, folder: str) -> None:
    """Run all cells, by a kernel of this very Python; refuse warnings."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    os.environ |= {
        "IPYTHONDIR": f"{folder}/.ipython",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }
    kernels = KernelSpecManager(kernel_dirs=[])
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = NotebookClient(notebook, km=kernel, timeout=CELL_SECONDS)
    client.execute(cwd=folder, cleanup_kc=True)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    said = [o.text for o in outputs if o.get("name") == "stderr"]
    if said:
        raise click.ClickException("".join(said))


def plain_tables(text: str) -> str:
    """Tables without the style that Markdown pages show as text."""
    text = re.sub(r"<style scoped>.*?</style>\n?", "", text, flags=re.DOTALL)
    text = text.replace('<table border="1" class="dataframe">', "<table>")
    text = re.sub(r' style="text-align: \w+;"', "", text)
    text = re.sub(r"</?div>\n?", "", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


if __name__ == "__main__":
    main()
