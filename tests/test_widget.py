"""The picture of a cache at work: what it shows is what the cache handed out, and every control moves it."""
import base64, io, re
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from llmwatch_course.foundations.blocks import visible
from llmwatch_course.kv_cache import widget as W

matplotlib.use("agg")


@pytest.fixture(scope="module")
def states(): return {kind: W.record(kind) for kind in W.KINDS}


def pixels(figure):
    "The figure as numbers."
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("kind, window, sinks", [("growing", None, 0), ("ring, window 12", 12, 0), ("window 9 and 3 sinks", 9, 3)])
def test_recording_equals_the_mask(states, kind, window, sinks):
    "After the prompt, what is handed out is what a query may see by definition."
    state, n = states[kind], len(W.TEXT)
    seen = visible(torch.arange(n)[None], torch.arange(n)[None], window, sinks)[0]
    assert state.sinks == sinks
    for held, read in zip(state.held[1:], state.read[1:], strict=True): assert sorted(p for p in held if p >= 0) == seen[read - 1].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", W.KINDS)
def test_recording_is_sound(states, kind):
    state = states[kind]
    assert state.read == list(range(W.PROMPT, len(W.TEXT) + 1)) and len(state.held) == len(state.read) == len(state.nbytes)
    for i, (held, read) in enumerate(zip(state.held, state.read, strict=True)):
        kept = [p for p in held if p >= 0]
        assert len(kept) == len(set(kept)) and set(state.new(i)) <= set(kept) <= set(range(read))
        if i: assert set(kept) <= {p for p in state.held[i - 1] if p >= 0} | set(state.new(i)), "what is forgotten stays forgotten"


def test_other_weights_choose_other_tokens():
    kind = next(k for k in W.KINDS if k.startswith("H2O"))
    assert any(W.record(kind, seed=s).held != W.record(kind).held for s in (1, 2, 3))


@pytest.mark.parametrize("kind", W.KINDS)
def test_conditions_say_what_was_held(states, kind):
    state, step = states[kind], 15
    cells = W.conditions(state, step)
    assert cells.shape == (len(state.held), len(state.text)) and (cells[step + 1:] == 0).all()
    for i in range(step + 1): assert set(np.flatnonzero(cells[i] >= 2)) == {p for p in state.held[i] if p >= 0}


def test_frame_is_pure_and_moves(states):
    state = states["window 9 and 3 sinks"]
    first = W.frame(state, 10)
    assert isinstance(first, Figure) and np.array_equal(pixels(first), pixels(W.frame(state, 10)))
    assert not np.array_equal(pixels(first), pixels(W.frame(state, 11)))
    import matplotlib.pyplot as plt
    assert not plt.get_fignums(), "no figure is left open"


def test_the_slots_show_the_letters_in_the_order_of_memory(states):
    state = states["ring, window 12"]
    shown = [t.get_text() for t in W.frame(state, 7).axes[1].texts]
    assert shown[0::2] == [W.TEXT[p].replace(" ", "·") for p in state.held[7]] and shown[1::2] == [str(p) for p in state.held[7]]


def test_words_name_what_is_held(states):
    said = W.words(states["window 9 and 3 sinks"], 20)
    assert "positions 0 to 2, 23 to 31 are held" in said and "20 tokens are forgotten" in said
    assert all("<" not in W.words(s, i) and '"' not in W.words(s, i) for s in states.values() for i in range(len(s.held)))


def test_every_control_moves_the_picture(monkeypatch):
    pytest.importorskip("ipywidgets")
    made = []
    monkeypatch.setattr(W, "record", lambda *a, keep=W.record, **k: made.append(a) or keep(*a, **k))
    ui = W.ui()
    kind, step, picture = ui.children
    recorded, seen = len(made), [picture.value]
    for control, value in ((step, step.value + 1), (kind, "growing"), (step, step.max), (kind, "ring, window 12"), (step, 0)):
        control.value = value
        seen.append(picture.value)
    assert len(set(seen)) == len(seen), "a control moved and the picture did not"
    assert len(made) == recorded == len(W.KINDS), "recorded once, drawn at each move"
    png = re.fullmatch(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)" style="max-width: 100%">', picture.value)
    assert base64.b64decode(png[1]).startswith(b"\x89PNG") and "ring, window 12" in png[2]
    assert matplotlib.image.imread(io.BytesIO(base64.b64decode(png[1]))).shape[2] == 4


@pytest.mark.parametrize("call, said", [
    (lambda: W.record("rnig, window 12"), "did you mean 'ring, window 12'"), (lambda: W.record("growing", "too short"), "longer than 12"),
    (lambda: W.record("growing", "지난주에 읽은 소설은 사라졌다 정말로"), "ASCII"), (lambda: W.frame(W.record("growing"), 99), "steps 0 to 24"),
    (lambda: W.frame(W.record("growing"), -1), "steps 0 to 24")])
def test_bad_requests_are_one_sentence(call, said):
    with pytest.raises(ValueError, match=said) as e: call()
    assert "\n" not in str(e.value)
