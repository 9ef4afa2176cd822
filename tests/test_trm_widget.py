"""The film of a typed board: what it shows is what network and solver said, every control moves it, and no text breaks it."""
import base64, io, re
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from llmwatch_course.trm import widget as W
from llmwatch_course.trm.recursion import TRM
from llmwatch_course.trm.sudoku import only_solution, parse, solved

matplotlib.use("agg")
SHIPPED = W.solver


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    "Random weights: none of what is tested here depends on a checkpoint."
    torch.manual_seed(0)
    models = {name: TRM(W.Size(cells=box.cells, vocab=box.size + 2, width=16, hidden=32, token_hidden=32), n=1, cycles=1).eval() for name, box in W.BOARDS.items()}
    monkeypatch.setattr(W, "solver", models.get)
    W.record.cache_clear()
    yield
    W.record.cache_clear()


def pixels(figure):
    "The figure as numbers."
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def film(right_from=5):
    "A film with known grids: all wrong, cell by cell right, all right from a step on."
    box = W.BOARDS["6x6"]
    puzzle = parse(W.START["6x6"], box)
    answer = only_solution(puzzle, box)
    wrong = np.where(puzzle > 0, puzzle, answer % 6 + 1).astype(np.int8)
    grids = [puzzle] + [wrong] * (right_from - 1) + [answer] * (W.STEPS + 1 - right_from)
    return W.Film(box, puzzle, answer, np.stack(grids), np.linspace(0.02, 0.98, W.STEPS))


@pytest.mark.parametrize("name", W.BOARDS)
def test_a_film_is_what_the_network_said(name):
    state, model = W.record(W.START[name], name), W.solver(name)
    assert solved(state.answer[None], state.puzzle[None], state.box).all() and len(state.grids) == W.STEPS + 1 == len(state.trust) + 1
    tokens, (y, z) = torch.tensor(state.puzzle[None].astype(int) + 1), model.start(1)
    for i in range(W.STEPS):
        with torch.no_grad(): out = model(tokens, y, z)
        y, z = out.y, out.z
        assert np.array_equal(np.clip(out.logits.argmax(-1)[0].numpy() - 1, 0, None), state.grids[i + 1])
        assert state.trust[i] == pytest.approx(float(out.halt.sigmoid()), abs=1e-5)


def test_counts():
    state = film()
    blanks = int((state.puzzle == 0).sum())
    assert state.right.tolist() == [0] * 5 + [blanks] * 12
    assert state.halts == 9 and state._replace(trust=np.zeros(16)).halts == 0 and state._replace(trust=np.ones(16)).halts == 1


def test_colours_and_frames_say_what_happened():
    state = film()
    def seen(step):
        cells = [p for p in W.frame(state, step).axes[0].patches if isinstance(p, Rectangle)]
        faces = [to_rgb(p.get_facecolor()) for p in cells if p.get_width() == 1]
        return {name: sum(np.allclose(f, to_rgb(c)) for f in faces) for name, c in (("given", W.GIVEN), ("right", W.RIGHT), ("wrong", W.WRONG))} | {"frames": sum(p.get_width() < 1 for p in cells)}
    given, blanks = int((state.puzzle > 0).sum()), int((state.puzzle == 0).sum())
    assert seen(0) == {"given": given, "right": 0, "wrong": 0, "frames": 0}
    assert seen(1) == {"given": given, "right": 0, "wrong": blanks, "frames": blanks}
    assert seen(2) == {"given": given, "right": 0, "wrong": blanks, "frames": 0}
    assert seen(5) == {"given": given, "right": blanks, "wrong": 0, "frames": blanks}


def test_frame_is_pure_and_moves():
    state = film()
    assert isinstance(W.frame(state, 3), Figure) and np.array_equal(pixels(W.frame(state, 3)), pixels(W.frame(state, 3)))
    assert not np.array_equal(pixels(W.frame(state, 3)), pixels(W.frame(state, 4)))
    import matplotlib.pyplot as plt
    assert not plt.get_fignums(), "no figure is left open"
    for step in (-1, 17):
        with pytest.raises(ValueError, match="steps 0 to 16"): W.frame(state, step)


def test_words():
    state = film()
    assert "0 of 27 blank cells are right, 27 cells are wrong, 27 have just changed" in W.words(state, 1) and "1 supervision step:" in W.words(state, 1)
    assert "27 of 27 blank cells are right, 0 cells are wrong" in W.words(state, 16) and "0.98" in W.words(state, 16)
    assert "network" not in W.words(state, 0) and all(not set('<>"') & set(W.words(state, i)) for i in range(17))


def test_every_control_moves_the_picture():
    pytest.importorskip("ipywidgets")
    ui = W.ui()
    name, text, step, picture = ui.children
    seen = [picture.value]
    board = W.START["6x6"]
    for control, value in ((step, 2), (step, 16), (text, board.replace("4", "5", 1)), (text, board), (step, 0), (name, "9x9"), (step, 7), (name, "6x6")):
        control.value = value
        assert picture.value != seen[-1], "a control moved and the picture did not"
        seen.append(picture.value)
    assert text.value == W.START["6x6"]
    png = re.fullmatch(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)" style="max-width: 100%">', picture.value)
    assert png and matplotlib.image.imread(io.BytesIO(base64.b64decode(png[1]))).shape[2] == 4


@pytest.mark.parametrize("text, said", [
    ("", "has 36 cells, but this text has 0"), ("1" * 35, "this text has 35"), ("." * 36, "more than one solution"),
    ("11" + "." * 34, "stands twice in row 1"), ("12345." + "." * 5 + "6" + "." * 24, "no solution"),
    ("<img src=x onerror=alert(1)>" * 3, "&#x27;&lt;&#x27; is no cell"), ('"><script>', "is no cell"), ("스도쿠", "is no cell"), ("7" * 36, "is no cell"),
    ("123456" * 100_000, "this text has 600000"), ("\0" * 36, "is no cell"), ("x" * 10**6, "is no cell")])
def test_hostile_boards_are_one_sentence(text, said):
    page = W.page(text, "6x6", 3)
    assert said in page and page.startswith("<p>No film: ") and page.endswith(".</p>") and len(page) < 200 and "\n" not in page
    assert "<" not in page[3:-4] and '"' not in page[3:-4]


def test_a_typed_board_may_look_like_a_drawn_one():
    drawn = "\n".join(" ".join(row[:3]) + " | " + " ".join(row[3:]) for row in W.START["6x6"].split("\n")).replace(".", "_")
    assert np.array_equal(W.record(drawn).grids, W.record(W.START["6x6"]).grids)


@pytest.mark.parametrize("name", W.BOARDS)
def test_the_shipped_networks_solve_the_first_boards(monkeypatch, name):
    monkeypatch.setattr(W, "solver", SHIPPED)
    state = W.record(W.START[name], name)
    assert (state.grids[-1] == state.answer).all() and state.halts
