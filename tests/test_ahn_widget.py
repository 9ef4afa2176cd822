"""The picture of a memory at work: what it shows is what cache and memory did, and every control moves it."""
import base64, io, re
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
pytest.importorskip("transformers")
from llmwatch_course.ahn import widget as W
from llmwatch_course.ahn.layer import AHN, Leaving
from llmwatch_course.foundations.blocks import visible

matplotlib.use("agg")
BUDGETS = [(9, 3), (1, 0), (1, 5), (4, 9), (12, 0), (40, 3), (36, 0)]


def pixels(figure):
    "The figure as numbers."
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("window, sinks", BUDGETS)
def test_every_letter_is_in_one_zone(window, sinks):
    "And what is held word for word is what a query may see by definition."
    state, n, written = W.record(window, sinks), len(W.TEXT), []
    seen = visible(torch.arange(n)[None], torch.arange(n)[None], window, sinks)[0]
    assert len(state.steps) == n
    for i, now in enumerate(state.steps):
        if now.written: written.append(now.left)
        assert sorted(now.sinks + now.window) == seen[i].nonzero()[:, 0].tolist()
        assert sorted(now.sinks + now.window + written) == list(range(i + 1))
        assert now.left == max(i - window, -1) and now.written == (now.left >= sinks)
        assert now.state.any() == bool(written)


@pytest.mark.parametrize("window, sinks", [(9, 3), (1, 0), (4, 9)])
def test_the_state_is_that_of_the_memory(window, sinks):
    "Written by the layer alone, without the cache."
    state, (_, k, v, x) = W.record(window, sinks), W.letters(W.TEXT, 0)
    ahn = AHN(W.HEADS * W.WIDTH, W.HEADS, W.WIDTH, generator=torch.Generator().manual_seed(0))
    gates, memory = ahn.gates(x), None
    for i, now in enumerate(state.steps):
        j = i - window
        if j >= sinks:
            at = slice(j, j + 1)
            memory = ahn.write(Leaving(k[:, :, at], v[:, :, at], gates.log_decay[..., at], gates.write[..., at], torch.tensor([[j]])), memory)
            torch.testing.assert_close(torch.tensor(now.state), memory[0, 0].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window, sinks", BUDGETS)
def test_bytes(window, sinks):
    token, gates, memory = 2 * W.WIDTH * 4, 2 * W.HEADS * 4, W.HEADS * W.WIDTH**2 * 4
    for i, now in enumerate(W.record(window, sinks).steps):
        assert now.nbytes == {"sinks": sinks * token, "window": window * token, "pending gates": window * gates, "memory": memory if i >= window else 0}


@pytest.mark.parametrize("window, sinks", BUDGETS)
def test_conditions_say_who_is_where(window, sinks):
    state, step = W.record(window, sinks), 20
    cells = W.conditions(state, step)
    assert cells.shape == (36, 36) and (cells[step + 1:] == 0).all()
    for i in range(step + 1):
        assert (cells[i, i + 1:] == 0).all() and cells[i, i] == 4 and (cells[i, :i] > 0).all()
        assert set(np.flatnonzero(cells[i] == 3)) == set(state.steps[i].sinks) - {i} and set(np.flatnonzero(cells[i] == 2)) == set(state.steps[i].window) - {i}


def test_frame_is_pure_and_moves():
    state = W.record(9, 3)
    first = W.frame(state, 20)
    assert isinstance(first, Figure) and np.array_equal(pixels(first), pixels(W.frame(state, 20)))
    assert not np.array_equal(pixels(first), pixels(W.frame(state, 21))) and not np.array_equal(pixels(first), pixels(W.frame(W.record(9, 2), 20)))
    import matplotlib.pyplot as plt
    assert not plt.get_fignums(), "no figure is left open"


def test_arrows_say_who_writes_and_who_reads():
    texts = lambda step: [t.get_text() for t in W.frame(W.record(9, 3), step).axes[1].texts if len(t.get_text()) > 1]
    assert texts(8) == texts(11) == ["memory, empty"], "nobody left, then only sinks did"
    assert texts(12) == ["memory", "3 is written", "12 reads"] and texts(24) == ["memory", "15 is written", "24 reads"]


def test_words():
    said = W.words(W.record(9, 3), 24)
    assert "sinks 0 to 2, window 16 to 24, 13 letters in the memory" in said and "Letter 15 has just left the window and was written" in said
    assert "Letter 2 has just left the window and stays as a sink" in W.words(W.record(9, 3), 11)
    assert all("<" not in W.words(W.record(w, s), i) and '"' not in W.words(W.record(w, s), i) for w, s in BUDGETS for i in range(36))


def test_every_control_moves_the_picture():
    pytest.importorskip("ipywidgets")
    ui = W.ui()
    step, window, sinks, picture = ui.children
    seen = [picture.value]
    for control, value in ((step, step.value + 1), (window, 4), (sinks, 0), (step, step.max), (window, window.min), (sinks, sinks.max), (step, 0)):
        control.value = value
        seen.append(picture.value)
    assert len(set(seen)) == len(seen), "a control moved and the picture did not"
    png = re.fullmatch(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)" style="max-width: 100%">', picture.value)
    assert base64.b64decode(png[1]).startswith(b"\x89PNG") and "After 1 letters" not in png[2]
    assert matplotlib.image.imread(io.BytesIO(base64.b64decode(png[1]))).shape[2] == 4


def test_short_texts_have_a_picture_too():
    pytest.importorskip("ipywidgets")
    assert "png" in W.ui("a").children[-1].value and isinstance(W.frame(W.record(1, 0, "ab"), 1), Figure)


@pytest.mark.parametrize("call, said", [
    (lambda: W.record(0, 0), "a window of 0"), (lambda: W.record(4, -1), "sinks can't be negative"), (lambda: W.record(4, 0, ""), "at least one letter"),
    (lambda: W.record(4, 0, "지난주에 읽은 소설"), "ASCII"), (lambda: W.frame(W.record(4, 0), 99), "steps 0 to 35"), (lambda: W.frame(W.record(4, 0), -1), "steps 0 to 35")])
def test_bad_requests_are_one_sentence(call, said):
    with pytest.raises(ValueError, match=said) as e: call()
    assert "\n" not in str(e.value)
