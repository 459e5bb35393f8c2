"""Rules about the source: nothing that runs foreign code, nothing of one machine, nothing that grows too long."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/landscope"
SOURCES = sorted(PACKAGE.rglob("*.py"))
GENERATED = {".git", ".venv", ".idea", ".vscode", "__pycache__", "vendor", "runs", "demo", "dist", "exports", "build"}

# Soft caps of the design are 400 and 40; what lies beyond these needs a line here with its reason.
LONGEST_FILE, LONGEST_FUNCTION = 450, 50
ONE_EXPERIMENT = "an experiment is one file, and its claims are one declaration, read from top to bottom"
LONG_FILES: dict[str, str] = {"src/landscope/experiments/johannsen2026_batch_size.py": ONE_EXPERIMENT}
LONG_FUNCTIONS: dict[str, str] = {
    "src/landscope/experiments/johannsen2026_batch_size.py:claims": ONE_EXPERIMENT,
    "src/landscope/experiments/johannsen2026_lottery_ticket.py:claims": ONE_EXPERIMENT,
    "src/landscope/experiments/johannsen2026_ntk.py:claims": ONE_EXPERIMENT,
}

FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def faults(source: str) -> Iterator[str]:
    """What in a module could run code that came as data, or vanishes under ``python -O``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert (raise an error instead)"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"line {node.lineno}: imports {n}" for n in names if n.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {why}" for why in _call_faults(node))


def _call_faults(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    settings = {k.arg: k.value for k in node.keywords}
    if name in FORBIDDEN_CALLS or name in {f"builtins.{call}" for call in FORBIDDEN_CALLS}:
        yield f"calls {name}"
    if name in ("os.system", "os.popen"):
        yield f"calls {name}"
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        yield f"calls {name} (yaml.safe_load)"
    if name in ("torch.load", "torch.hub.load") and not _is(settings.get("weights_only"), True):
        yield f"calls {name} without weights_only=True"
    if name in ("np.load", "numpy.load") and not _is(settings.get("allow_pickle", ast.Constant(False)), False):
        yield f"calls {name} with pickle allowed"
    if "shell" in settings and not _is(settings["shell"], False):
        yield "runs a shell"
    if "trust_remote_code" in settings:
        yield "mentions trust_remote_code"


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_runs_what_comes_as_data(path):
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "import marshal",
        "def f():\n    import joblib",
        "eval('1')",
        "builtins.exec('1')",
        "yaml.load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=flag)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "os.system(x)",
        "load_dataset(x, trust_remote_code=True)",
        "assert x",
    ],
)
def test_the_rule_sees_what_it_forbids(source):
    assert len(list(faults(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(x, weights_only=True)",
        "re.compile('x')",
        "torch.compile(f)",
        "np.load(x)",
        "json.load(f)",
    ],
)
def test_the_rule_leaves_the_rest_alone(source):
    assert list(faults(source)) == []


def root_imports(source: str) -> list[int]:
    """The lines that import what the package exports (or the package itself) rather than a module of it."""
    modules = {path.stem for path in PACKAGE.iterdir()}
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Import) and any(alias.name == "landscope" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.level > 0)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "landscope"
            and not all(alias.name in modules for alias in node.names)
        )
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_inside_imports_the_package_root(path):
    assert root_imports(path.read_text(encoding="utf-8")) == []


def test_root_imports_are_seen():
    seen = [
        "import landscope",
        "import landscope as ls",
        "from landscope import call",
        "from . import spec",
        "from .spec import x",
    ]
    assert [root_imports(line) for line in seen] == [[1]] * len(seen)
    assert root_imports("from landscope.spec import call\nfrom landscope import spec\nimport landscope_other") == []


def lengths(path: Path) -> Iterator[tuple[str, int, int]]:
    """Every name with its lines (a function without its docstring) and its cap, the file itself first."""
    name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    yield name, text.count("\n"), LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            yield f"{name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1 - docstring, LONGEST_FUNCTION


def test_files_and_functions_stay_short():
    allowed = LONG_FILES | LONG_FUNCTIONS
    found = {name: lines for path in SOURCES for name, lines, cap in lengths(path) if lines > cap}
    assert {name: lines for name, lines in found.items() if name not in allowed} == {}
    assert [name for name in allowed if name not in found] == [], "no longer too long: take it off the list"


# Put together here so that this file does not contain what it looks for.
MACHINE_PATH = re.compile(
    r"(?<![\w.<])/(?:" + "|".join(["wor" + "k", "far" + "m", "roo" + "t", "hom" + r"e/[^/\s\\]+", "User" + "s"]) + r")/"
)
REGISTRY = re.compile(
    r"://[^/\s\"']*(?:" + "|".join(["pyp" + "i", "npm" + "js", "artifac" + "t", "nexu" + "s", "devp" + "i"]) + ")",
    re.IGNORECASE,
)
PRIVATE = re.compile(r"://(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+")


def project_files() -> Iterator[Path]:
    """Every file that belongs to the project, generated and vendored ones left out."""
    for folder, inside, files in os.walk(ROOT):
        inside[:] = [x for x in inside if x not in GENERATED and not x.endswith(("_cache", ".egg-info", ".hypothesis"))]
        yield from (Path(folder, name) for name in files)


def machine_traces(text: str) -> list[str]:
    """Paths of one machine, hosts of package registries, private addresses."""
    return [match[0] for pattern in (MACHINE_PATH, REGISTRY, PRIVATE) for match in pattern.finditer(text)]


def test_no_file_names_a_machine_or_a_registry():
    found = {}
    for path in project_files():
        try:
            traces = machine_traces(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError):  # a picture, or a file that is gone again
            continue
        if traces:
            found[str(path.relative_to(ROOT))] = traces
    assert found == {}


def test_machine_traces_are_seen():
    for trace in (
        "/roo" + "t/x",
        '"/hom' + 'e/someone/"',
        "https://mirror.pyp" + "i.example/simple",
        "http://10.1." + "2.3:8080",
    ):
        assert machine_traces(f"see {trace} here"), trace
    assert machine_traces("https://example.org/work/ /usr/bin/chromium ../shared/data src/work/x") == []
