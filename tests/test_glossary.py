"""Every word a lesson introduces is explained, once, in both languages."""
import re, tomllib
import nbformat, pytest
from conftest import ROOT, name, notebooks

TERMS = tomllib.loads((ROOT/"data/glossary.toml").read_text(encoding="utf-8"))["term"]
NEWSLETTER = ("KV cache", "Artificial Hippocampus Network", "sliding-window attention", "planner / executor / verifier", "Monte Carlo tree search", "code world model",
              "hidden-information game")


def key(term):
    "A term as it is looked up: words in brackets, capitals and a plural do not count."
    return re.sub(r"(?<!s)s$", "", " ".join(re.sub(r"\([^)]*\)", " ", term).lower().split()))


def opening(path):
    "The first markdown cell of a notebook."
    return next(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")


def introduced(text):
    "The words on the `Terms:` line of an opening, which may run on to the next blank line."
    found = re.search(r"(?ms)^Terms:(.*?)(?:\n\s*\n|\Z)", text)
    return [t.strip(" .\n") for t in found[1].split("·")] if found else []


OPENINGS = {name(p).removeprefix("nbs/"): opening(p) for p in notebooks("nbs")}
LINES = {k: introduced(text) for k, text in OPENINGS.items()}
KEYS = {k: set(map(key, terms)) for k, terms in LINES.items()}
KNOWN = {key(t["term"]): t for t in TERMS}
HOMES = {word: [lesson for lesson, terms in KEYS.items() if word in terms] for word in KNOWN}


@pytest.mark.parametrize("lesson", [k for k in LINES if re.match(r"0\d_\w+/[0-8]|91_", k)])
def test_a_lesson_names_its_terms_and_each_is_explained(lesson):
    assert LINES[lesson], f"nbs/{lesson} must open with a line such as `Terms: ring · window`"
    missing = [t for t in LINES[lesson] if key(t) not in KNOWN]
    assert not missing, f"nbs/{lesson} introduces words that data/glossary.toml lacks: {missing}"


@pytest.mark.parametrize("page", OPENINGS)
def test_every_notebook_opens_in_korean_too(page):
    lead = re.search(r"(?m)^한국어 요약: (.+)", OPENINGS[page])
    assert lead and len(re.findall("[가-힣]", lead[1])) >= 15 and lead[1].rstrip().endswith("."), "`한국어 요약: ` and a sentence or two"


def test_the_newsletters_own_terms_are_here(): assert {key(t) for t in NEWSLETTER} <= KNOWN.keys()


def test_no_term_is_explained_twice(): assert len(KNOWN) == len(TERMS)


@pytest.mark.parametrize("t", TERMS, ids=lambda t: t["term"])
def test_entry_is_complete(t):
    assert t.keys() == {"term", "korean", "meaning", "lesson"}
    assert re.search("[가-힣]", t["korean"]) or t["korean"] == t["term"], "Korean, or a proper name that stays as it is"
    assert t["meaning"].endswith(".") and "\n" not in t["meaning"] and len(t["meaning"]) <= 160 and t["meaning"][0].isupper()
    homes = HOMES[key(t["term"])]
    assert t["lesson"] in (homes or LINES), f"it is introduced by {homes}" if homes else "the notebook that explains it"


def test_the_page_shows_the_table_of_today():
    nb = nbformat.read(ROOT/"nbs/glossary.ipynb", 4)
    shown = "\n".join(o.data.get("text/plain", "") for c in nb.cells if c.cell_type == "code" for o in c.outputs if "data" in o)
    missing = [t["term"] for t in TERMS if t["term"] not in shown or t["meaning"] not in shown]
    assert not missing, f"run nbs/glossary.ipynb again: it lacks {missing}"
