"""Let MyST-NB read nbdev notebooks: `#|` lines become cell settings, hidden cells go, the code stays."""
import re
import nbformat

HIDE = {"hide", "default_exp"}
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+(?:(?:exercises|solutions)/|(?![^)]*\.ipynb))[^)#]+)[^)]*\)")  # links that leave nbs/: on a page they bring the file
CONTENTS = re.compile(r"<!-- contents\n(.*?)-->", re.DOTALL)  # the table of contents is for the pages alone: a notebook hides comments


def brought(link):
    "A link to a file outside nbs/, as a download; its words are plain there, so code in them loses its ticks."
    return f"{{download}}`{link[1].replace('`', '')} <{link[2]}>`"


def directives(source):
    "The `#|` lines that open a cell, as a dict, and the code after them."
    lines, out = source.splitlines(), {}
    while lines and lines[0].startswith("#|"):
        name, _, value = lines.pop(0)[2:].strip().replace(":", " ", 1).partition(" ")
        out[name] = value.strip().strip('"')
    return out, "\n".join(lines)


def read(text):
    "The notebook in `text`, as MyST-NB should see it."
    nb = nbformat.reads(text, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = CONTENTS.sub(r"\1", OUTSIDE.sub(brought, cell.source))
        if cell.cell_type != "code": continue
        dirs, cell.source = directives(cell.source)
        tags, mystnb = list(cell.metadata.get("tags", [])), cell.metadata.setdefault("mystnb", {})
        if dirs.keys() & HIDE: tags.append("remove-cell")
        if "code-fold" in dirs: tags.append("hide-input")
        if "fig-alt" in dirs: mystnb["image"] = {"alt": dirs["fig-alt"]}
        if "fig-cap" in dirs: mystnb["figure"] = {"caption": dirs["fig-cap"]}
        cell.metadata["tags"] = tags
        for data in (o.data for o in cell.outputs if "text/html" in o.get("data", {})):  # search reads a table with its marks taken out: cells need a blank between them
            data["text/html"] = data["text/html"].replace("</td>", "</td> ").replace("</th>", "</th> ")
    return nb
