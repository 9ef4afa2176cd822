"""Draw the first page's pictures into docs/_static: one a chapter, by its own code, and all claims with their verdicts. With --check, only name those that would look different today."""
import sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/"tools")]
import matplotlib  # noqa: E402
matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from PIL import Image  # noqa: E402
from llmwatch_course.cli import lessons  # noqa: E402
from llmwatch_course.foundations.plots import COLOURS, style  # noqa: E402
from readme_table import standing  # noqa: E402

FOLDER = ROOT/"docs/_static"
BLUE, ORANGE, GREEN, PINK, AMBER, SKY = COLOURS
SMALL, LARGE = 7.5, 9  # points, in a picture 3.2 inches wide that is shown at about that size


def canvas(width=3.2, height=2.):
    "An empty white figure."
    return plt.figure(figsize=(width, height), dpi=200, facecolor="white")


def bare(fig, left, bottom, width, height, title=""):
    "Axes without ticks and spines."
    ax = fig.add_axes((left, bottom, width, height), xticks=[], yticks=[])
    ax.grid(False); ax.spines[:].set_visible(False)
    if title: ax.set_title(title, fontsize=SMALL, pad=4)
    return ax


def words(ax, *labels, **options):
    "Texts at places: x, y, words, colour."
    for x, y, text, colour in labels: ax.text(x, y, text, ha="center", va="center", color=colour, fontsize=SMALL, **options)


def foundations():
    "What a language model, written by hand, says next."
    import torch
    from llmwatch_course.foundations.decoder import load_smollm2
    from llmwatch_course.foundations.language_model import tokenizer
    text, tokens, fig = "The capital of France is", tokenizer(), canvas()
    with torch.inference_mode(): likely = load_smollm2(torch.float32, "cpu")(torch.tensor([tokens(text)["input_ids"]]))[0, -1].softmax(-1)
    shares, ids = likely.topk(4)
    ax = bare(fig, .25, .07, .6, .72)
    for row, (share, i) in enumerate(zip(shares.tolist(), ids.tolist())):
        ax.barh(row, share, height=.62, color=SKY if row else BLUE)
        ax.text(-.03, row, tokens.decode([i]).strip(), ha="right", va="center", fontsize=LARGE)
        ax.text(share + .02, row, f"{share:.0%}", va="center", fontsize=SMALL, color="0.3")
    ax.set(ylim=(3.6, -.6), xlim=(0, 1))
    fig.text(.06, .87, f"“{text} …”", fontsize=LARGE + 1)
    return fig


def staircase(ax, widget, state, last):
    "What became of each token, a row for each step up to the last."
    ax.imshow(widget.conditions(state, last), cmap=widget.PALETTE, vmin=0, vmax=4, aspect="auto", interpolation="none")
    ax.set_xlabel("position in the text", fontsize=SMALL, labelpad=3); ax.set_ylabel("tokens read", fontsize=SMALL, labelpad=3)


def kv_cache():
    "What a cache with a window and sinks holds."
    from llmwatch_course.kv_cache import widget
    fig, state = canvas(), widget.record("window 9 and 3 sinks")
    ax = bare(fig, .08, .12, .9, .85)
    staircase(ax, widget, state, len(state.held) - 1)
    words(ax, (8.6, 17, "forgotten", "0.25"), (19.8, 14, "held", "white"), (28, 5, "not read yet", "0.3"))
    words(ax, (1, 12, "sinks", "black"), rotation=90)
    return fig


def ahn():
    "The same, but what leaves the window goes into a matrix of fixed size."
    from llmwatch_course.ahn import widget
    fig, state = canvas(), widget.record(9, 3)
    ax = bare(fig, .08, .12, .57, .85)
    staircase(ax, widget, state, len(state.steps) - 1)
    words(ax, (9, 27, "memory", "black"), (26, 6, "not read yet", "0.3"))
    words(ax, (18.6, 22.4, "window", "white"), rotation=-43)
    words(ax, (1, 21, "sinks", "white"), rotation=90)
    memory, matrix = bare(fig, .72, .3, .27, .432, "one matrix"), state.steps[-1].state
    memory.imshow(matrix, cmap="PuOr_r", vmin=-np.abs(matrix).max(), vmax=np.abs(matrix).max())
    memory.annotate("", (-.06, .12), (-1.26, -.2), xycoords="axes fraction", arrowprops=dict(arrowstyle="-|>", lw=1.3, color="black", connectionstyle="arc3,rad=.25"))
    fig.text(.855, .22, "of fixed size", ha="center", fontsize=SMALL)
    return fig


def agents():
    "Eight attempts at one question; the score of each goes to all of its turns."
    from llmwatch_course.agents import widget
    from llmwatch_course.agents.train import Recipe
    done, fig = widget.play(), canvas()
    table = widget.grid(done, Recipe())
    ax = bare(fig, .03, .02, .95, .84)
    ax.pcolormesh(range(widget.TURNS + 1), range(len(table) + 1), widget.colours(table).numpy(), edgecolors="white", linewidth=2)
    for i, (turns, right) in enumerate(zip(done.length.tolist(), done.right.tolist())):
        ax.text(turns + .1, i + .5, "right" if right else "wrong", va="center", fontsize=SMALL, color=BLUE if right else ORANGE)
        for t in range(turns): ax.text(t + .5, i + .5, "+" if right else "−", ha="center", va="center", fontsize=LARGE, color="white" if right else "black")
    ax.set(xlim=(0, widget.TURNS + .75), ylim=(len(table), 0))
    for t in range(widget.TURNS): ax.text(t + .5, -.15, f"turn {t + 1}", ha="center", va="bottom", fontsize=SMALL)
    return fig


def trm():
    "One board as a tiny network sees it after one step and at the end."
    from llmwatch_course.trm import widget
    film, fig = widget.record(widget.START["6x6"]), canvas()
    for step, left in ((1, .02), (widget.STEPS, .52)):
        ax = bare(fig, left, .03, .46, .736, f"after {step} step{'s'[:step > 1]}")
        for i, digit in enumerate(film.grids[step]):
            row, column = divmod(i, 6)
            given, good = film.puzzle[i] > 0, digit == film.answer[i]
            ax.add_patch(Rectangle((column, row), 1, 1, facecolor="0.88" if given else BLUE if good else ORANGE, alpha=1 if given else .4, lw=0))
            ax.text(column + .5, row + .53, str(digit), ha="center", va="center", fontsize=SMALL, weight="bold" if given else "normal", style="normal" if good else "italic")
        for i in range(7):
            ax.plot([i, i], [0, 6], "-", color="black", lw=1.4 if i % 3 == 0 else .4, marker="")
            ax.plot([0, 6], [i, i], "-", color="black", lw=1.4 if i % 2 == 0 else .4, marker="")
        ax.set(xlim=(-.08, 6.08), ylim=(6.08, -.08), aspect="equal")
    return fig


def ace():
    "The lives of the items of a playbook."
    from llmwatch_course.ace import widget
    moments, fig = widget.story(), canvas()
    born, ax = widget.lives(moments), bare(fig, .07, .12, .91, .78)
    for row, events in enumerate(born.values()):
        for start, stop in widget.spans(events, len(moments)): ax.plot([start, stop], [row, row], "-", color="0.72", lw=1.6, marker="")
    left = .07
    for kind, (mark, colour) in widget.MARKS.items():
        if not (at := [(e.step, row) for row, events in enumerate(born.values()) for e in events if e.kind == kind]): continue
        ax.plot(*zip(*at), mark, color=colour, ms=3.2, ls="")
        fig.text(left, .93, kind, fontsize=SMALL, color=colour)
        left += .25
    ax.set(xlim=(-1.5, len(moments)), ylim=(len(born), -1))
    ax.set_xlabel("task after task", fontsize=SMALL, labelpad=3); ax.set_ylabel("items of the playbook", fontsize=SMALL, labelpad=3)
    return fig


def cwm():
    "A game in which the search has just moved: how often it tried each column."
    from llmwatch_course.cwm import widget
    fig, match = canvas(), widget.Match("connect_four", simulations=1000)
    for column in (3, 3): match = widget.click(match, column)
    before = widget.replay(widget.game(match.name).program(), match.actions[:-1])
    ax = bare(fig, .03, .04, .94, .82, "1,000 simulations, then a move")
    for x, visits in zip(match.tree.actions.tolist(), match.tree.visits.tolist()):
        y = len(before["columns"][x])
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=AMBER, alpha=.9*visits/match.tree.visits.max(), lw=0))
        ax.text(x + .5, y + (.2 if x == match.tree.best else .5), f"{visits:,}", ha="center", va="center", fontsize=SMALL)
        if x == match.tree.best: ax.add_patch(Rectangle((x, y), 1, 1, fill=False, lw=1.8, zorder=4))
    for x, marks in enumerate(match.state["columns"]):
        for y, mark in enumerate(marks):
            new = (x, y + 1) == (match.tree.best, len(marks))
            ax.plot(x + .5, y + (.64 if new else .5), mark, color=BLUE if mark == "x" else ORANGE, ms=7, mew=1.6, mfc="none")
    for x in range(8): ax.plot([x, x], [0, 4], "-", color="0.75", lw=.8, marker="", zorder=0)
    for y in range(5): ax.plot([0, 7], [y, y], "-", color="0.75", lw=.8, marker="", zorder=0)
    ax.set(xlim=(-.03, 7.03), ylim=(-.03, 4.03))
    return fig


def memory_forcing():
    "A view of a world of blocks, and which remembered frames saw its surfaces first."
    from llmwatch_course.memory_forcing import walking
    visit, fig = walking.follow(walking.begin(8), 2*(8*("forward",) + 4*("turn right",))), canvas()
    winners = walking.votes(visit)
    for bottom, picture, title in ((.515, visit.seen[-1].rgb.movedim(0, -1), "a view"), (.03, walking.owners(visit, winners), "who saw it first")):
        bare(fig, .03, bottom, .56, .385, title).imshow(picture.numpy(), aspect="auto", interpolation="none")
    for row, ((frame, _), colour) in enumerate(zip(winners, COLOURS)):
        ax = bare(fig, .65, .67 - .32*row, .32, .23, "" if row else "remembered")
        ax.imshow(visit.seen[frame].rgb.movedim(0, -1).numpy(), aspect="auto", interpolation="none")
        ax.spines[:].set(visible=True, color=colour, linewidth=2)
    return fig


def vgb():
    "A walk that goes back: visits in rings of the law it must obey, and the last moves."
    from llmwatch_course.vgb import widget
    from llmwatch_course.vgb.exact import stationary
    from llmwatch_course.vgb.tree import places
    state, fig, step, size = widget.record(1.), canvas(), 150, 1700
    ax = bare(fig, 0, 0, 1, 1)
    x, y = places(state.tree).tolist(), (-state.tree.depth).tolist()
    for i, parent in enumerate(state.tree.parent.tolist()):
        if i: ax.plot([x[i], x[parent]], [y[i], y[parent]], "-", color="0.7", lw=1, marker="", zorder=1)
    ax.scatter(x, y, s=(size*state.shares(step)).tolist(), color=widget.DISC, zorder=2)
    ax.scatter(x, y, s=(size*stationary(state.tree)).tolist(), facecolors="none", edgecolors="black", linewidths=1, linestyle="--", zorder=3)
    trail = state.path[step - widget.TRAIL:step + 1].tolist()
    for age, (a, b) in enumerate(zip(trail, trail[1:])):
        side = .012 if b > a else -.012  # down on one side of the line, up on the other
        if a != b: ax.annotate("", (x[b] + side, y[b]), (x[a] + side, y[a]), zorder=4, arrowprops=dict(arrowstyle="-|>", color=ORANGE, lw=1.4, alpha=.3 + .7*(age + 1)/len(trail), shrinkA=5, shrinkB=5))
    ax.plot(x[trail[-1]], y[trail[-1]], "o", color=ORANGE, ms=6, mec="white", zorder=5)
    ax.set(xlim=(min(x) - .06, max(x) + .06), ylim=(-3.35, .4))
    fig.text(.03, .9, "down, and up again", fontsize=LARGE)
    return fig


LOOKS = {"reproduced": ("✓", BLUE, "white"), "derived": ("=", SKY, "black"), "mechanism shown": ("~", "#BFE3D6", "black"), "not reproduced": ("✗", ORANGE, "white"), "open": ("○", "white", "black")}


def verdicts():
    "Every claim as a tile, a row a chapter."
    fig, rows = canvas(7.6, 3.), standing()
    ax, chapters = bare(fig, .005, .09, .99, .9), [o for o in lessons(ROOT) if o.topic in {row["topic"] for row in rows.values()}]
    for y, o in enumerate(chapters):
        mine = sorted((row for row in rows.values() if row["topic"] == o.topic), key=lambda row: list(LOOKS).index(row["verdict"]))
        ax.text(-.15, y + .5, f"{o.number}  {o.title}", ha="right", va="center", fontsize=SMALL)
        for x, row in enumerate(mine):
            mark, colour, ink = LOOKS[row["verdict"]]
            ax.add_patch(Rectangle((x + .03, y + .08), .94, .84, facecolor=colour, edgecolor="0.5" if colour == "white" else colour, lw=.8))
            ax.text(x + .5, y + .52, f"{mark} {row['claim'].split('-', 1)[1]}", ha="center", va="center", fontsize=5.8, color=ink)
    ax.set(xlim=(-3.85, 10.02), ylim=(len(chapters), 0))
    for left, (word, (mark, colour, _)) in zip((.07, .25, .405, .64, .85), LOOKS.items()):
        fig.patches.append(Rectangle((left, .02), .015, .04, transform=fig.transFigure, facecolor=colour, edgecolor="0.5", lw=.5))
        fig.text(left + .02, .04, f"{mark} {word}: {sum(row['verdict'] == word for row in rows.values())}", va="center", fontsize=SMALL)
    return fig


PICTURES = {f"chapter-{i}": draw for i, draw in enumerate((foundations, kv_cache, ahn, agents, trm, ace, cwm, memory_forcing, vgb))} | {"verdicts": verdicts}


def save(name, folder):
    "Draw one picture."
    style()
    fig = PICTURES[name]()
    fig.canvas.draw()
    Image.fromarray(np.asarray(fig.canvas.buffer_rgba())).convert("RGB").quantize(128).save(folder/f"{name}.png", optimize=True)
    plt.close(fig)


def same(one, other):
    "Do two files show the same? A machine may round a colour or the edge of a letter differently."
    a, b = (np.asarray(Image.open(path).convert("L"), int) for path in (one, other))
    return a.shape == b.shape and (abs(a - b) > 64).mean() < .001


def stale(folder=FOLDER, names=tuple(PICTURES)):
    "The pictures that are missing, or show something else than would be drawn now."
    with tempfile.TemporaryDirectory() as fresh:
        for name in names: save(name, Path(fresh))
        return [name for name in names if not (folder/f"{name}.png").is_file() or not same(folder/f"{name}.png", Path(fresh)/f"{name}.png")]


if __name__ == "__main__":
    if "--check" not in sys.argv:
        for name in PICTURES: save(name, FOLDER)
    elif old := stale(): sys.exit(f"docs/_static: {', '.join(old)} would look different today: python tools/overview.py draws them anew")
