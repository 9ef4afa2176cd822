"""Settings agree, generated files are what the notebooks say, rooms keep to their arrows, the code is clean."""
import ast, configparser, os, re, shutil, subprocess, sys, tomllib
from importlib import metadata
from pathlib import Path
import nbformat, pytest
from conftest import ROOT, absent, copy_tree, name, notebooks, tool

PACKAGE = ROOT/"llmwatch_course"
MAY_IMPORT = {  # the rooms and arrows of the course; `cli` imports everything, lazily
    "foundations": set(), "kv_cache": {"foundations"}, "ahn": {"foundations", "kv_cache"}, "agents": {"foundations"}, "trm": {"foundations"},
    "ace": {"foundations"}, "cwm": {"foundations"}, "memory_forcing": {"foundations"}, "vgb": {"foundations", "kv_cache"}}
TOPICS = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py")))
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py" and "_data" not in p.parts)
ALL = notebooks("nbs", "solutions", "exercises")


@pytest.fixture(scope="module")
def ini():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT/"settings.ini")
    return parser


@pytest.fixture(scope="module")
def toml(): return tomllib.loads((ROOT/"pyproject.toml").read_text())


def test_the_two_settings_files_agree(ini, toml):
    d, project, nbdev = ini["DEFAULT"], toml["project"], toml["tool"]["nbdev"]
    assert d["lib_name"] == project["name"] == d["lib_path"] == d["title"]
    assert d["description"] == project["description"]
    assert d["min_python"] == project["requires-python"].removeprefix(">=")
    assert d["author"] == project["authors"][0]["name"]
    assert d["tst_flags"] == nbdev["tst_flags"]
    assert d["allowed_cell_metadata_keys"].split() == nbdev["allowed_cell_metadata_keys"]
    assert d.getboolean("update_pyproject") == nbdev["update_pyproject"]
    assert d["git_url"] == project.get("urls", {}).get("Repository", "") and "Documentation" not in project.get("urls", {})
    assert f'__version__ = "{d["version"]}"' in (PACKAGE/"__init__.py").read_text()


def test_export_settings_are_those_in_force(ini):
    from nbdev.config import get_config
    used, d = get_config(), ini["DEFAULT"]
    for key in ("lib_path", "nbs_path"): assert getattr(used, key).resolve() == ROOT/d[key]
    for key in ("branch", "doc_host", "doc_baseurl", "git_url", "tst_flags"): assert (getattr(used, key) or "") == d[key], key
    for key in ("recursive", "put_version_in_init", "black_formatting", "jupyter_hooks", "clean_ids", "clear_all"):
        if hasattr(used, key): assert getattr(used, key) == d.getboolean(key), key  # nbdev 3 dropped some of these


def test_the_course_section_is_what_settings_reads(ini):
    from dataclasses import fields
    from llmwatch_course.foundations.settings import Settings
    assert {f.name for f in fields(Settings)} <= set(ini["course"])


def pins():
    "Name and version of every line of constraints.txt."
    lines = [o for o in (ROOT/"constraints.txt").read_text().splitlines() if o and not o.startswith("#")]
    return {re.sub(r"[-_.]+", "-", n).lower(): v for n, v in (o.split("==") for o in lines)}


def test_everything_installed_is_pinned():
    pinned, wrong = pins(), []
    for d in metadata.distributions():
        if d.name.replace("-", "_").lower() == "llmwatch_course": continue
        want, have = pinned.get(re.sub(r"[-_.]+", "-", d.name).lower()), d.version.partition("+")[0]
        if want != have: wrong.append(f"{d.name}: installed {have}, pinned {want}")
    assert not wrong, wrong


def test_metadata_leaves_torch_free_and_constraints_pin_it(toml):
    assert "torch>=2.6" in toml["project"]["dependencies"] and "torch" in pins()
    needed = [o for group in toml["project"]["optional-dependencies"].values() for o in group] + toml["project"]["dependencies"]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", o).group()).lower() for o in needed} - {"llmwatch-course"}
    assert names <= pins().keys()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_has_its_notebook(path):
    "A renamed `default_exp` leaves its old module behind; nothing else would notice."
    text = path.read_text()
    if path.name == "__init__.py" and "File to edit: " not in text: return
    source = path.parent/text.split("File to edit: ")[1].splitlines()[0].rstrip(".")
    assert source.exists(), f"it says it comes from {source.name}, which is gone"
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    assert re.search(rf"default_exp {re.escape(module)}\b", source.read_text()), f"{source.name} no longer exports {module}"


def imported_topics(path):
    "The rooms of the course that a module imports from anywhere in its code."
    here = ["llmwatch_course", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[:len(here) - node.level + 1] + [node.module or ""] if node.level else [node.module or ""]).strip(".")
            found = [base] if base.count(".") else [f"{base}.{a.name}" for a in node.names]
        else: continue
        for f in found:
            if f.startswith("llmwatch_course."): yield f.split(".")[1]


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent != PACKAGE], ids=name)
def test_imports_keep_to_the_arrows(path):
    room = path.relative_to(PACKAGE).parts[0]
    assert room in MAY_IMPORT, f"the room {room} is not in the plan"
    strangers = set(imported_topics(path)) - MAY_IMPORT[room] - {room}
    assert not strangers, f"{room} may not import {strangers}"


def python(code):
    "Run `code` in a fresh process at the top of the course."
    return tool(sys.executable, "-c", code)


def test_the_package_loads_no_torch():
    python("import sys, llmwatch_course; assert 'torch' not in sys.modules and 'numpy' not in sys.modules")


def test_the_ledger_loads_no_torch():
    python("import sys; sys.argv = ['llmwatch', 'claims']\nfrom llmwatch_course.cli import main\n"
           "try: main()\nexcept SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules")


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_pulls_in_only_what_it_needs(topic):
    python("import sys\nfor m in ('transformers', 'gguf', 'matplotlib', 'pyspiel', 'numba', 'openai', 'ipywidgets'): sys.modules[m] = None\n"
           f"import llmwatch_course.{topic}")


@pytest.mark.parametrize("topic", [t for t in TOPICS if t != "foundations"])
def test_public_names_are_few_and_there(topic):
    found = python(f"import llmwatch_course.{topic} as t; names = getattr(t, '__all__', [])\nfor n in names: getattr(t, n)\nprint(len(names))")
    assert 1 <= int(found) <= 15


def test_the_library_equals_the_notebooks(tmp_path):
    here = copy_tree(tmp_path, "nbs", "pyproject.toml", "settings.ini", "README.md", "llmwatch_course/__init__.py")
    tool("nbdev-export", cwd=here)
    made, kept = ({p.relative_to(r): p.read_text() for p in r.rglob("*.py")} for r in (here/"llmwatch_course", PACKAGE))
    assert made.keys() == kept.keys()
    different = [str(p) for p in made if made[p] != kept[p]]
    assert not different, f"make export writes these anew: {different}"


def test_notebooks_are_clean(tmp_path):
    here = copy_tree(tmp_path, "nbs", "solutions", "exercises", "pyproject.toml", "settings.ini", "llmwatch_course/__init__.py")
    for folder in ("nbs", "solutions", "exercises"):
        if any((here/folder).rglob("*.ipynb")): tool("nbdev-clean", "--fname", folder, cwd=here)
    changed = [name(p) for p in ALL if (here/p.relative_to(ROOT)).read_text() != p.read_text()]
    assert not changed, f"nbdev-clean changes {changed}"


def too_long(source):
    "What a reader cannot take in at one look: a cell over 30 lines, or in a cell that is one class, a method over 30."
    try: tree = ast.parse(re.sub(r"(?m)^[%!].*", "", source))
    except SyntaxError: return []                        # top-level await and the like; the notebook's own run judges it
    if any(isinstance(o, ast.ClassDef) for o in tree.body):
        return [o.name for o in ast.walk(tree) if isinstance(o, ast.FunctionDef) and o.end_lineno - o.lineno >= 30]
    return source.splitlines()[:2] if len(source.splitlines()) > 30 else []


@pytest.mark.parametrize("path", ALL, ids=name)
def test_notebook_is_fit_to_read(path):
    nb = nbformat.read(path, 4)
    assert nb.metadata.kernelspec.name == "python3"
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert not [c.source for c in code for o in c.outputs if o.output_type == "error"]
    for c in code:
        lines = c.source.splitlines()
        long = too_long(c.source)
        assert not long, f"more than 30 lines: {long}"
        stray = [o for i, o in enumerate(lines) if o.startswith("#|") and not all(p.startswith("#|") for p in lines[:i])]
        assert not stray, f"nbdev reads directives only in the first lines of a cell: {stray}"
    assert any("한국어" in c.source for c in nb.cells if c.cell_type == "markdown"), "every notebook opens with a Korean summary"
    assert not re.search(r"nbdev\.showdoc|@patch", "\n".join(c.source for c in code))


def test_ruff(): tool("ruff", "check", "--no-cache", ".")


def test_types():
    if not shutil.which("node"): absent("Node.js, which pyright runs on")
    done = subprocess.run([str(Path(sys.executable).parent/"pyright"), "--pythonpath", sys.executable], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})
    if "errors," not in done.stdout and "error," not in done.stdout: absent(f"pyright itself, which comes over the network: {(done.stdout + done.stderr)[-300:]}")
    assert done.returncode == 0, done.stdout[-6000:]


def test_what_is_generated_on_the_front_page_is_of_today(): tool(sys.executable, "tools/readme_table.py", "--check")


def test_no_machine_paths_and_nothing_left_to_do():
    "What is committed must be true on every machine."
    for path in [*ROOT.glob("*.*"), *(p for f in ("nbs", "llmwatch_course", "solutions", "tests", "tools", "docs", "data", ".ci") for p in (ROOT/f).rglob("*"))]:
        if not path.is_file() or path.suffix not in (".py", ".md", ".toml", ".ini", ".ipynb", ".txt", ".js", ".json", "") or {"node_modules", "vendor", "__pycache__", ".ipynb_checkpoints", "_data"} & set(path.parts): continue
        text = path.read_text(errors="replace").replace("[TODO|", "")
        found = re.search(r"\b(TODO|FIXME)\b(?!\|)|(?<![\w.])/(home|root|work)/\w+/", text) if path != Path(__file__) else None
        assert not found, f"{path.relative_to(ROOT)}: {found.group()}"
