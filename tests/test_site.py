"""The site builds without a warning in both languages, stands alone, links to what is there, and can be read with a screen reader, on a phone, and by searching."""
import html, importlib, inspect, json, re, tomllib
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit
import nbformat, pytest
from babel.messages.pofile import read_po
from fastcore.docments import docments
from conftest import BROWSER, ROOT, absent, name, notebooks, tool
from nbdev_reader import read

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src", "video": "src", "embed": "src"}


class Page(HTMLParser):
    "What a page loads, what it links to, and the places in it that can be linked to."
    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"): self.ids.add(a["id"])
        if tag in LOADS and a.get(LOADS[tag]): self.loads.append(a[LOADS[tag]])
        if tag == "link" and a.get("href") and (a.get("rel") or "") in ("stylesheet", "preload", "icon", "modulepreload", "shortcut icon"): self.loads.append(a["href"])
        if tag == "a" and a.get("href"): self.links.append(a["href"])


@pytest.fixture(scope="module")
def pages(site): return {p: Page(p.read_text(errors="replace")) for p in site.rglob("*.html") if "_static" not in p.parts}


def test_every_notebook_has_a_page(site, pages):
    wanted = [f"{name(p).removeprefix('nbs/')}.html" for p in notebooks("nbs") if p.stem != "95_init"]
    assert not [w for w in wanted for language in (site, site/"ko") if language/w not in pages]


def test_no_page_asks_another_host(site, pages):
    outside = {(p.name, u) for p, page in pages.items() for u in page.loads if urlsplit(u).scheme in ("http", "https") or u.startswith("//")}
    outside |= {(p.name, u) for p in site.rglob("*.css") for u in re.findall(r"""(?:url\(|@import )['"]?((?:https?:)?//[^'")]+)""", p.read_text(errors="replace"))}
    assert not outside


def test_every_link_arrives(site, pages):
    broken = set()
    for path, page in pages.items():
        for url in page.links + page.loads:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or "_static/vendor/" in parts.path: continue
            target = (path.parent/unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir(): target /= "index.html"
            if not target.exists(): broken.add((path.name, url))
            elif parts.fragment and target in pages and path.name != "genindex.html" and unquote(parts.fragment) not in pages[target].ids: broken.add((path.name, url))
    assert not broken


def test_figures_have_words(pages):
    silent = [p.name for p in pages for tag in re.findall(r"<img [^>]*_images/[^>]*>", p.read_text()) if not re.search(r'alt="[^"]{9,}"', tag) or re.search(r'alt="[^"]*_images', tag)]
    assert not silent, f"pages with a figure that says nothing to a screen reader: {silent}"


def test_formulas_and_sliders_have_their_scripts(site):
    if not (BROWSER/"node_modules/mathjax").is_dir(): absent("the npm packages of tests/browser: npm install --prefix tests/browser")
    for script in ("tex-svg.js", "require.js", "embed-amd.js"): assert (site/"_static/vendor"/script).stat().st_size > 50_000


def test_files_outside_the_lessons_can_be_brought():
    "A link that leaves nbs/ becomes a download; lessons and pictures stay what they are."
    links = "[`a`](../../data/README.md) [b](../../exercises/x/01.ipynb) [c](../x/01.ipynb#d) ![e](../../docs/_static/overview.png)"
    cell = read(nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(links)]))).cells[0].source
    assert cell == "{download}`a <../../data/README.md>` {download}`b <../../exercises/x/01.ipynb>` [c](../x/01.ipynb#d) ![e](../../docs/_static/overview.png)"


CATALOGUE = ROOT/"docs/locale/ko/LC_MESSAGES/course.po"


def opening(path) -> list[str]:
    "Heading, paragraphs and items of a notebook's first text, each in one line as gettext has it; tables and formulas that stand alone are left out."
    source = next(c.source for c in read(path.read_text(encoding="utf-8")).cells if c.cell_type == "markdown")
    blocks = re.split(r"\n\s*\n|\n(?=> |- |\d+\. )", re.sub(r"\$\$.*?\$\$,?", "", source, flags=re.DOTALL))
    return [" ".join(re.sub(r"^(#+|>|-|\d+\.) ", "", b.strip()).split()) for b in blocks if b.strip() and not b.lstrip().startswith("|")]


def kept(message: str) -> list[str]:
    "What a translation leaves alone: code, formulas, where links lead."
    return sorted(re.findall(r"\$[^$]+\$|`[^`]+`|(?<=\]\()[^)]+", re.sub(r"\{download\}`([^`<]*)<([^>]+)>`", r"[\1](\2)", message)))


def test_every_opening_has_its_korean():
    "A sentence that changes loses its translation: this says which."
    korean = {" ".join(m.id.split()): m.string for m in read_po(CATALOGUE.open("rb")) if m.id}
    asked = [p for p in notebooks("nbs") if p.stem not in ("index", "95_init")]
    missing = [(name(p), m) for p in asked for m in opening(p) if not m.startswith(("한국어 요약", "Terms:")) and not korean.get(m)]
    assert not missing
    assert not [en for en, ko in korean.items() if kept(en) != kept(ko)]


def test_the_korean_pages_are_korean(site, pages):
    "The same pages, each with a way to the other language."
    twins = {p.relative_to(site) for p in pages if "ko" not in p.relative_to(site).parts}
    assert {p.relative_to(site/"ko") for p in pages if p.is_relative_to(site/"ko")} == twins
    for page, title in (("index", "논문 일곱 편, 만들고 재다"), ("01_kv_cache/01_bill", "청구서")):
        assert f"<h1>{title}<" in (site/f"ko/{page}.html").read_text(encoding="utf-8")
        assert f"{page.rpartition('/')[2]}.html" in " ".join(u for u in pages[site/f"{page}.html"].links if "ko/" in u)


def words(page: str) -> str:
    "What a page says, without its marks, blanks as one."
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())


def test_the_library_says_what_the_source_says(site, pages):
    "Every public name of every sub-package is on its page; another reader of the comments finds no other ones."
    for folder in sorted((ROOT/"nbs").glob("0?_*")):
        package, path = importlib.import_module(f"llmwatch_course.{folder.name[3:]}"), site/f"library/{folder.name}.html"
        assert {i.rpartition(".")[2] for i in pages[path].ids} >= set(package.__all__)
    said = words((site/"library/01_kv_cache.html").read_text())
    for module in sorted((ROOT/"llmwatch_course/kv_cache").glob("[!_]*.py")):
        module = importlib.import_module(f"llmwatch_course.kv_cache.{module.stem}")
        for f in (getattr(module, n) for n in module.__all__):
            if not inspect.isroutine(f) and not inspect.isclass(f): continue
            for comment in (f.__doc__, *docments(f).values()):
                assert not comment or words(comment.replace("`", "").removeprefix("-> ")) in said, f"{module.__name__}.{f.__name__}: {comment}"


def test_search_knows_both_languages(site):
    "The index that pages bring along, so that search needs no server."
    index = json.loads((site/"searchindex.js").read_text().strip().removeprefix("Search.setIndex(").removesuffix(")"))
    def found(word): at = index["terms"].get(word, []); return {index["docnames"][i] for i in ([at] if isinstance(at, int) else at)}
    assert "04_trm/01_sudoku" in found("sudoku")
    assert all("glossary" in found(t["korean"]) for t in tomllib.loads((ROOT/"data/glossary.toml").read_text())["term"] if re.fullmatch("[가-힣]+", t["korean"]))
    assert "Ring" in {entry[-1] for entry in index["objects"]["llmwatch_course.kv_cache.ring"]}


def test_pages_can_be_read_by_everyone(site, browser, pages):
    asked = [p.relative_to(site) for p in pages if p.name not in ("genindex.html", "search.html")]
    asked = sorted(str(site/p) for p in asked if p.parts[0] != "ko" or p.parts[1] in ("index.html", "01_kv_cache"))
    found = json.loads(tool("node", BROWSER/"axe.js", *asked, **browser))
    assert found.keys() == set(asked)
    problems = {k.removeprefix(str(site)): v for k, v in found.items() if v}
    assert not problems, json.dumps(problems, indent=1)[:6000]
