"""Who imports whom, and what is imported late or not: attention_zoo <- backbones <- harness/spec <- harness, and
records <- harness, records <- reports; of the harness, only what prints for a command line imports reports.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("attention_zoo", "backbones", "records", "harness", "reports")
FORBIDDEN = {
    "attention_zoo": {"backbones", "records", "harness", "reports"},
    "backbones": {"records", "harness", "reports"},
    "records": {"attention_zoo", "backbones", "harness", "reports"},
    "harness": set(),
    "reports": {"attention_zoo", "backbones", "harness", "torch"},
}
LATE = (
    "av",
    "decord",
    "xformers",
    "natten",
    "fastvideo_kernel",
    "spas_sage_attn",
)  # imported inside functions only: slow, noisy, or not on every machine
FILES = {path.relative_to(ROOT).as_posix(): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


def imports(node, inside_function=False):
    """Every (top-level package, whether inside a function) that a syntax tree imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((name.name.partition(".")[0], inside_function) for name in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield child.module.partition(".")[0], inside_function
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, inside_function or function)


def imported_by(file):
    return set(imports(ast.parse(FILES[file].read_text(encoding="utf-8"), filename=file)))


PRINTING = {  # what of the harness shows figures and tables to whoever typed a command
    "harness/clips/throughput.py",
    "harness/compare.py",
    "harness/evaluation/tested.py",
    "harness/measuring.py",
    "harness/suite.py",
    "harness/sweep.py",
}


def modules(file):
    """All that a file imports, by full names."""
    for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8"), filename=file)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_of_the_harness_only_what_prints_imports_reports():
    importing = {
        file
        for file in FILES
        if file.startswith("harness/")
        if any(name.startswith("reports.") for name in modules(file))
    }
    assert importing == PRINTING


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("harness/spec/")])
def test_what_a_command_can_say_imports_no_other_room_of_the_harness(file):
    wrong = [name for name in modules(file) if name.startswith("harness.") and not name.startswith("harness.spec")]
    assert not wrong, f"{file} imports {wrong}"


def test_every_room_is_read():
    assert {file.partition("/")[0] for file in FILES} == set(ROOMS)


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_no_room_above_its_own(file):
    wrong = {package for package, _ in imported_by(file)} & FORBIDDEN[file.partition("/")[0]]
    assert not wrong, f"{file} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("file", FILES)
def test_some_packages_are_imported_late(file):
    wrong = {package for package, late in imported_by(file) if package in LATE and not late}
    assert not wrong, (
        f"{file} imports {', '.join(sorted(wrong))} at the top; import inside of the function that needs it"
    )


MODULES = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for file, path in FILES.items()}
MOST_LATE = 11  # imports inside of functions in all rooms; 232 there were once
DOORS = {  # what imports by a name that is only known when it runs, and why
    "attention_zoo/__init__.py": "names of the package are found on first use",
    "attention_zoo/__main__.py": "what a command does once it is checked",
    "attention_zoo/declared.py": "a scheme of another package is asked for its options",
    "attention_zoo/registry.py": "whatever lies in a package registers itself",
    "backbones/__init__.py": "names of the package are found on first use",
    "backbones/__main__.py": "what a command does once it is checked",
    "backbones/named.py": "a family of another package by its dotted name",
    "harness/packages.py": "packages that may be missing or are slow, by a table of reasons",
    "harness/spec/names.py": "what only a room above knows is asked there",
    "harness/spec/options.py": "what a command does once it is checked",
    "reports/figures/__init__.py": "figures by name",
}
BY_NAME = {"import_module", "resolve_name", "__import__"}


def imported_modules(file):
    """Modules of this project that a file imports when it runs, wherever in it, apart from those for annotations; what
    a command does once it is checked, `Work("module:function")`, is imported too.
    """
    for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8"), filename=file)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in ast.walk(node):
                inner.for_annotations = True
        if getattr(node, "for_annotations", False):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            yield from {node.value.partition(":")[0]} & MODULES.keys()
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for name in node.names:
                yield from (m for m in (f"{node.module}.{name.name}", node.module) if m in MODULES)


def test_no_files_import_each_other_in_a_circle():
    left = {module: set(imported_modules(file)) - {module} for module, file in zip(MODULES, FILES, strict=True)}
    while ends := {module for module, others in left.items() if not others & left.keys()}:
        for module in ends:
            del left[module]
    # What imports a circle without being in one goes, too.
    while starts := left.keys() - set().union(*left.values()):
        for module in starts:
            del left[module]
    assert not left, f"circles among {', '.join(sorted(left))}"


def late_imports(file):
    """The lines of a file's imports inside of functions, and of those the ones without a reason beside them.

    A reason is a comment on the line, above it, or at the import just before; or the `except` of a package that is not
    on every machine.
    """
    text = FILES[file].read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text, filename=file)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    imports = {n.lineno: n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)}
    tried = {n.lineno for t in ast.walk(tree) if isinstance(t, ast.Try) and t.handlers for n in t.body}
    explained, bare = set(), []
    for number, node in sorted(imports.items()):
        before = next(n for n in range(number - 1, 0, -1) if lines[n - 1].strip())
        if "#" in lines[number - 1] or lines[before - 1].lstrip().startswith("#") or explained & {before, number - 1}:
            explained.add(node.end_lineno)
        elif number in tried:
            explained.add(node.end_lineno)
        else:
            bare.append(number)
    return list(imports), bare


@pytest.mark.parametrize("file", FILES)
def test_imports_inside_of_functions_have_a_reason(file):
    _, bare = late_imports(file)
    assert not bare, f"{file}, lines {bare}: import at the top, or say beside it why not"


def test_imports_inside_of_functions_are_few():
    counts = {file: len(late_imports(file)[0]) for file in FILES}
    assert sum(counts.values()) <= MOST_LATE, counts


def test_what_is_imported_by_name_goes_through_few_doors():
    calls = {
        file
        for file in FILES
        for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME
    }
    assert calls == set(DOORS)


def works():
    """What commands do once they are checked, by the file of the command."""
    for file in FILES:
        for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Work":
                words = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
                yield from ((file, word) for word in words if isinstance(word, str))


def test_what_a_command_does_is_a_function_that_is_there():
    assert len(list(works())) >= 10
    for file, name in works():
        module, _, function = name.partition(":")
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, name)


def loaded_after(code):
    code += "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_attention_alone_loads_no_other_room_and_nothing_late():
    loaded = loaded_after("import attention_zoo; attention_zoo.schemes.names(); attention_zoo.kernels.names()")
    assert not loaded & {"backbones", "harness", "reports", *LATE}


def test_models_load_no_harness():
    loaded = loaded_after("import backbones; backbones.names()")
    assert not loaded & {"harness", "reports", *LATE}


@pytest.mark.parametrize(
    "command",
    [
        ("attention_zoo", "check", "windw"),
        ("attention_zoo", "draw", "windw"),
        ("attention_zoo", "speedup", "windw"),
        ("attention_zoo", "draw", "full", "grid=2x2"),
        ("attention_zoo", "draw", "neighborhood", "windo=3"),
        ("attention_zoo", "draw", "neighborhood", "window=3"),
        ("attention_zoo", "draw", "global_pyramid", 'branches=["stagd"]'),
        ("attention_zoo", "speedup", "full", "heads=5"),
        ("attention_zoo", "speedup", "neighborhood", "windo=3"),
        ("attention_zoo", "gallery", "windo=3"),
        ("backbones", "describe", "dualformer_tinny"),
    ],
)
def test_what_a_command_says_wrong_is_refused_without_torch(command):
    module, *words = command
    loaded = loaded_after(f"from {module}.__main__ import main; assert main({words}) == 2")
    assert "torch" not in loaded


def test_reports_are_made_without_torch():
    loaded = loaded_after("import reports.build, records.record, records.visits, records.provenance")
    assert not loaded & {"attention_zoo", "backbones", "harness", "torch", *LATE}


def test_the_command_line_starts_without_torch():
    loaded = loaded_after("import harness.run")
    assert not loaded & {"torch", *LATE}
