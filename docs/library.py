"""Pages for the library, made from its source: one for each sub-package, with the comments beside the parameters. Nothing of ours is imported."""
import ast, copy, io, re, tokenize
from functools import cache
from pathlib import Path
from sphinx.project import Project

ROOT = Path(__file__).resolve().parents[1]
NAME, LIB = "llmwatch_course", ROOT/"llmwatch_course"
LONG = 72  # characters of a default or of a constant that are worth reading


def text(s: str) -> str:
    "A docstring or comment as reStructuredText: `code` is code, a name in it a link where there is one, and the rest is plain."
    def piece(at: int, s: str) -> str:
        if at % 2 == 0: return re.sub(r"([\\*|_<>`:\[\]])", r"\\\1", s)
        return f":py:obj:`{s}`" if re.fullmatch(r"[A-Za-z_][\w.]*", s) else f"``{s}``"
    return re.sub(r"^\\ |\\ (?=\s|$)|(?<=\s)\\ ", "", r"\ ".join(piece(*p) for p in enumerate(re.split(r"`([^`]+)`", s))))


def comments(source: str) -> dict[int, str]:
    "What stands after a `#` at the end of a line of code, by line; notes to the linter are for nobody else."
    found = {t.start[0]: t.string.lstrip("# ").removeprefix("-> ").strip() for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    return {line: c for line, c in found.items() if not c.startswith("noqa")}


def brief(node) -> str:
    "The expression, or three dots for a long one."
    return s if len(s := ast.unparse(node)) <= LONG else "..."


def parameters(f) -> list:
    "The parameters of a function in the order in which they are written, without the object itself."
    a = f.args
    return [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x and x.arg not in ("self", "cls")]


def signature(f) -> str:
    "`(k: Tensor, bits: int = 4) -> Tensor`, long defaults as three dots."
    a, short = copy.deepcopy(f.args), lambda d: d and ast.Name(brief(d))
    a.defaults, a.kw_defaults = [*map(short, a.defaults)], [*map(short, a.kw_defaults)]
    for args in (a.posonlyargs, a.args):
        if args and args[0].arg in ("self", "cls"): del args[0]
    return f"({ast.unparse(a)})" + (f" -> {ast.unparse(f.returns)}" if f.returns else "")


def beside(f, said: dict[int, str]) -> list[str]:
    "The fields `:param x:` and `:returns:` of a function, from the comments in its head."
    fields, last = [], f.body[0].lineno
    for line in range(f.lineno, last):
        if line not in said: continue
        names = [p.arg for p in parameters(f) if p.end_lineno == line]
        gives = f.returns and f.returns.end_lineno == line and ast.unparse(f.returns) != "None" or not names
        fields.append(f":returns: {text(said[line])}" if gives else f":param {text(','.join(names))}: {text(said[line])}")
    return fields


def described(kind: str, head: str, options: list[str], doc: str | None, fields: list[str], inner: list[str] = ()) -> list[str]:
    "One entry: what it is called, what it says of itself, what it takes."
    body = [*(f":{o}" for o in options), "", *(line for p in [doc] if p for line in [*map(text, p.splitlines()), ""]), *fields, "", *inner]
    return [f".. py:{kind}:: {head}", *(f"   {line}".rstrip() for line in body), ""]


def function(f, said, kind="function") -> list[str]:
    "A function or a method."
    marks = {ast.unparse(d).rpartition(".")[2] for d in f.decorator_list}
    if marks & {"property", "cached_property"}: return described("property", f.name, [f"type: {ast.unparse(f.returns)}"] if f.returns else [], ast.get_docstring(f), beside(f, said))
    return described(kind, f.name + signature(f), [m for m in ("classmethod", "staticmethod") if m in marks], ast.get_docstring(f), beside(f, said))


def klass(c, said) -> list[str]:
    "A class: how to make one, its fields, its public methods."
    marks, bases = {ast.unparse(d).partition("(")[0] for d in c.decorator_list}, [ast.unparse(b) for b in c.bases]
    held = [n for n in c.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]
    methods = [n for n in c.body if isinstance(n, ast.FunctionDef)]
    made = next((m for m in methods if m.name == "__init__"), None)
    fields = [f":var {text(n.target.id)}: {text(said[n.end_lineno])}" for n in held if n.end_lineno in said]
    head = c.name + (signature(made) if made else "")
    if "dataclass" in marks and not bases or "NamedTuple" in bases:
        fields = [f.replace(":var", ":param", 1) for f in fields]
        head = f"{c.name}({', '.join(f'{n.target.id}: {ast.unparse(n.annotation)}' + (f' = {brief(n.value)}' if n.value else '') for n in held)})"
    inner = [line for m in methods if not m.name.startswith("_") or m.name == "__call__" for line in function(m, said, "method")]
    above = [f":bases: {text(', '.join(f'`{b}`' for b in bases))}"] if bases else []
    return described("class", head.removesuffix("()").replace(" -> None", ""), [], ast.get_docstring(c), [*fields, *(beside(made, said) if made else []), *above], inner)


def remark(node, said) -> str | None:
    "What is said beside a constant; of a long table that nothing is said of, what it can be asked for."
    if s := said.get(node.end_lineno) or said.get(node.lineno): return s
    return ", ".join(f"`{brief(k)}`" for k in node.value.keys if k) if isinstance(node.value, ast.Dict) and brief(node.value) == "..." else None


def constants(node, said, public) -> list[str]:
    "Names that a line of a module gives to values."
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
    names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.id in public]
    plain = isinstance(targets[0], ast.Name) and node.value and brief(node.value) != "..."
    return [line for n in names for line in described("data", n, [f"value: {brief(node.value)}"] if plain else [], remark(node, said), [])]


def offered(tree) -> list[str]:
    "The public names of a module."
    return next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), [])


def entries(tree, said) -> list[str]:
    "All that a module offers, in the order in which it is written."
    lines, public = [], offered(tree)
    for n in tree.body:
        if isinstance(n, (ast.Assign, ast.AnnAssign)): lines += constants(n, said, public)
        elif isinstance(n, ast.FunctionDef) and n.name in public: lines += function(n, said)
        elif isinstance(n, ast.ClassDef) and n.name in public: lines += klass(n, said)
    return lines


@cache
def homes(name: str) -> dict[str, str]:
    "Our names that a module knows, each with the module that it was written in: several chapters have a `Config`."
    if not (file := ROOT.joinpath(*name.split(".")).with_suffix(".py")).is_file(): return {}
    tree, known = ast.parse(file.read_text(encoding="utf-8")), {}
    for n in ast.walk(tree):
        if not isinstance(n, ast.ImportFrom) or not n.level or not n.module: continue
        theirs = homes(".".join([*name.split(".")[:-n.level], n.module]))
        known |= {a.asname or a.name: theirs[a.name] for a in n.names if a.name in theirs}
    return {n: f"{name}.{n}" for n in offered(tree)} | known


def qualify(tree, full: dict[str, str]) -> None:
    "Give the types in the heads of functions their full names, where they are ours."
    types = [t for n in ast.walk(tree) for t in (getattr(n, "annotation", None), getattr(n, "returns", None)) if t]
    for n in (n for t in types for n in ast.walk(t) if isinstance(n, ast.Name)): n.id = full.get(n.id, n.id)


@cache
def parsed(path: Path):
    "A module's name, tree and comments, and the page of the lesson that it comes from."
    source = path.read_text(encoding="utf-8")
    lesson = re.search(r"File to edit: (?:\.\./)+nbs/(\S+)\.ipynb", source)
    name, tree = ".".join((NAME, *path.relative_to(LIB).with_suffix("").parts)), ast.parse(source)
    qualify(tree, homes(name))
    return name.removesuffix(".__init__"), tree, comments(source), lesson[1]


def module(path: Path) -> list[str]:
    "A module as a section of its page."
    name, tree, said, lesson = parsed(path)
    title = path.stem
    return [title, "-"*len(title), "", f".. py:module:: {name}", "", text(ast.get_docstring(tree) or ""), "", f"Lesson: :doc:`/{lesson}`", "", *entries(tree, said)]


def front(package: str, paths: list[Path]) -> list[str]:
    "The names that a sub-package offers itself, each with the first line of what it says."
    name, tree, said, _ = parsed(LIB/package/"__init__.py")
    docs = {}
    for stem, n, theirs in ((p.stem, n, parsed(p)[2]) for p in paths for n in parsed(p)[1].body):
        if isinstance(n, (ast.ClassDef, ast.FunctionDef)): docs[stem, n.name] = ast.get_docstring(n)
        elif isinstance(n, ast.Assign): docs |= {(stem, t.id): remark(n, theirs) for t in n.targets if isinstance(t, ast.Name)}
    names = sorted((a.name, n.module.rpartition(".")[2]) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith(name) for a in n.names)
    lines = [f"- :py:obj:`{n} <{name}.{home}.{n}>` – {text((docs.get((home, n)) or home).partition(chr(10))[0])}" for n, home in names]
    return [package, "="*len(package), "", f".. py:module:: {name}", "", text(ast.get_docstring(tree)), "", *lines, "", *entries(tree, said)]


@cache
def pages() -> dict[str, str]:
    "All pages by the name of their document, in the order of the chapters."
    made = {}
    for folder in sorted((ROOT/"nbs").glob("0?_*")):
        paths = sorted((p for p in (LIB/folder.name[3:]).glob("*.py") if p.stem != "__init__"), key=lambda p: parsed(p)[3])
        made[f"library/{folder.name}"] = [*front(folder.name[3:], paths), *(line for p in paths for line in module(p))]
    return {name: "\n".join([".. default-role:: literal", "", *lines, ""]) for name, lines in made.items()}


class Course(Project):
    "The documents of the source folder, and the library's pages, which lie elsewhere."
    def discover(self, *patterns):
        super().discover(*patterns)
        for name, path in self.library.items(): self._docname_to_path[name], self._path_to_docname[path] = path, name
        self.docnames.update(self.library)
        return self.docnames


def add(app) -> None:
    "Write the pages beside the build's own files, and have them found."
    app.project = app.env.project = Course(app.srcdir, app.config.source_suffix)
    app.project.library = {name: Path(app.doctreedir)/f"{name}.rst" for name in pages()}
    for name, path in app.project.library.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pages()[name], encoding="utf-8")


def setup(app):
    app.connect("builder-inited", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
