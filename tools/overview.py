"""Draw the README's figure, docs/_static/overview.png, from a real cache and the recorded results. With --check, only say whether it shows the results of today."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import matplotlib  # noqa: E402
matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402
from llmwatch_course.foundations.plots import label_lines, style  # noqa: E402
from llmwatch_course.foundations.results import read  # noqa: E402
from llmwatch_course.kv_cache.widget import PALETTE, conditions, record  # noqa: E402

PICTURE, RESULTS = ROOT/"docs/_static/overview.png", ROOT/"data/results/small"
CLAIMS = ("kv-speed", "kv-forget")


def held(ax):
    "What a cache with a window and sinks holds of a sentence, step by step."
    state = record("window 9 and 3 sinks")
    ax.imshow(conditions(state, len(state.held) - 1), cmap=PALETTE, vmin=0, vmax=4, aspect="auto", interpolation="none")
    for x, y, name, colour in ((1, 12, "sinks", "black"), (9.5, 16.5, "forgotten", "0.25"), (19.6, 14, "held", "white"), (28, 5, "not read yet", "0.25"), (33, 17, "newest", "black")):
        ax.text(x, y, name, ha="center", va="center", color=colour, fontsize=8, rotation=90 if name == "sinks" else 0)
    ax.grid(False)
    ax.set(xlabel="position in the text (tokens)", ylabel="tokens read", title="What a cache holds")
    ax.set_yticks(range(0, len(state.read), 6), state.read[::6])


def cost(ax, rows):
    "Time of one more token, with and without a cache."
    x = [r["tokens"] for r in rows]
    ax.plot(x, [r["again_ms"] for r in rows], label="compute all again")
    ax.plot(x, [r["cached_ms"] for r in rows], label="cached")
    ax.set(xlabel="text so far (tokens)", ylabel="one more token (ms)", ylim=(0, None), title="What each step costs")


def forgotten(ax, rows):
    "Surprise at a passage that was read before, by how long ago."
    x = [r["distance"] for r in rows]
    for name, label in (("full", "all tokens kept"), ("window + sinks", "window + sinks"), ("bare window", "bare window")): ax.plot(x, [r[name] for r in rows], label=label)
    ax.set(xlabel="read so long ago (tokens)", ylabel="surprise (nats a token)", ylim=(0, None), title="What is forgotten")


def stamp(folder):
    "The numbers that the figure shows, as text that travels inside it."
    found = {claim: read(claim, folder=folder) for claim in CLAIMS}
    missing = [claim for claim, record in found.items() if not record]
    if missing: sys.exit(f"there is no result of {', '.join(missing)} in {folder}: llmwatch run kv_cache --scale small --seeds 3 --out {folder}")
    return found, "; ".join(f"{claim} {record['table']}" for claim, record in found.items())


def draw(picture=PICTURE, folder=RESULTS):
    "Write the figure."
    found, shown = stamp(folder)
    style()
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.1), layout="constrained", width_ratios=(1.15, 1, 1))
    held(axes[0]); cost(axes[1], found["kv-speed"]["table"]); forgotten(axes[2], found["kv-forget"]["table"])
    fig.canvas.draw()                                                      # the labels stand where the axes have come to lie
    for ax in axes[1:]: label_lines(ax)
    picture.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(picture, dpi=130, metadata={"Description": shown, "Software": None})
    plt.close(fig)


def fresh(picture=PICTURE, folder=RESULTS):
    "Does the figure show what is recorded?"
    return picture.is_file() and Image.open(picture).text.get("Description") == stamp(folder)[1]


if __name__ == "__main__":
    if "--check" not in sys.argv: draw()
    elif not fresh(): sys.exit("docs/_static/overview.png shows older results: python tools/overview.py draws it anew")
