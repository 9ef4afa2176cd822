"""The site builds without a warning, stands alone, links to what is there, and can be read with a screen reader."""
import json, re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit
import pytest
from conftest import BROWSER, absent, name, notebooks, tool

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
    hidden = {"95_init"}
    missing = [name(p) for p in notebooks("nbs") if p.stem not in hidden and site/name(p).removeprefix("nbs/").__add__(".html") not in pages]
    assert not missing


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


def test_pages_can_be_read_by_everyone(site, browser, pages):
    read = sorted(str(p) for p in pages if p.name not in ("genindex.html", "search.html"))
    found = json.loads(tool("node", BROWSER/"axe.js", *read, **browser))
    assert found.keys() == set(read)
    problems = {k.removeprefix(str(site)): v for k, v in found.items() if v}
    assert not problems, json.dumps(problems, indent=1)[:6000]
