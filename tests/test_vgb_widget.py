"""The picture of a walk: what it shows is what the walk did, and every control moves it."""
import base64, io, re
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from llmwatch_course.vgb import widget as W
from llmwatch_course.vgb.exact import neighbour_weights, stationary, total_variation

matplotlib.use("agg")
GUIDES = [(0., 1.), (1., 1.), (1., 0.5), (3., 2.)]


def pixels(figure):
    "The figure as numbers."
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("eps, factor", GUIDES)
def test_every_step_leads_to_a_neighbour_that_weighs_something(eps, factor):
    state = W.record(eps, factor)
    to = torch.cat([state.tree.parent[:, None], state.tree.children], 1)
    weights, path = neighbour_weights(state.tree), state.path.tolist()
    assert path[0] == 0 and len(path) == W.STEPS + 1
    for a, b in zip(path, path[1:]): assert any(t == b and w > 0 for t, w in zip(to[a].tolist(), weights[a].tolist()))


@pytest.mark.parametrize("eps, factor", GUIDES)
def test_counts_are_those_of_the_path(eps, factor):
    state = W.record(eps, factor)
    for step in (0, 1, 17, W.STEPS):
        assert state.counts[step].tolist() == torch.bincount(state.path[:step + 1], minlength=15).tolist()
        assert abs(float(state.shares(step).sum()) - 1) < 1e-12


def test_leaves_keep_their_law_under_both_controls():
    target = torch.tensor(W.REWARD, dtype=torch.float64) / sum(W.REWARD)
    for eps, factor in GUIDES:
        law = stationary(W.little_tree(eps, factor))[-8:]
        torch.testing.assert_close(law / law.sum(), target)


@pytest.mark.parametrize("eps, factor", GUIDES)
def test_visits_come_closer_to_the_law(eps, factor):
    state = W.record(eps, factor)
    far = [total_variation(state.shares(step), stationary(state.tree)) for step in (5, W.STEPS)]
    assert far[1] < 0.12 < far[0]


def test_frame_is_pure_and_moves():
    state = W.record(1.)
    first = W.frame(state, 150)
    assert isinstance(first, Figure) and np.array_equal(pixels(first), pixels(W.frame(state, 150)))
    for other in ((state, 151), (W.record(1.25), 150), (W.record(1., 0.75), 150)): assert not np.array_equal(pixels(first), pixels(W.frame(*other)))
    import matplotlib.pyplot as plt
    assert not plt.get_fignums(), "no figure is left open"


def test_the_dashed_line_is_the_action_level_law():
    "By hand: letter by letter with the guide's values."
    state, eps = W.record(1.), 1.
    level = [torch.tensor(W.REWARD, dtype=torch.float64)]
    while len(level[0]) > 1: level.insert(0, level[0].view(-1, 2).mean(1))
    law = torch.ones(1, dtype=torch.float64)
    for depth, v in enumerate(level[1:], 1):
        guide = v.view(-1, 2) * (torch.tensor([1 + eps, 1.]) if depth < 3 else 1.)
        law = (law[:, None] * guide / guide.sum(1, keepdim=True)).flatten()
    want = total_variation(law, level[3] / level[3].sum())
    lines = [line for line in W.frame(state, 150).axes[2].lines if line.get_linestyle() == "--"]
    assert len(lines) == 1 and lines[0].get_ydata()[0] == pytest.approx(want)


def test_words():
    for step in (0, 1, 150, W.STEPS):
        said = W.words(W.record(1.), step)
        assert f"after {step} steps" in said and not set('<>"') & set(said)
    assert "the walker is at the root and has met 0 leaves" in W.words(W.record(1.), 0)


@pytest.mark.parametrize("last", [1, 9, 100, W.STEPS])
def test_marks_grow(last):
    marks = W.geometric(last)
    assert marks[0] == 0 and marks[-1] == last and all(a < b for a, b in zip(marks, marks[1:]))


def test_every_control_moves_the_picture():
    pytest.importorskip("ipywidgets")
    step, eps, factor, picture = W.ui().children
    seen = [picture.value]
    for control, value in ((step, 0), (step, step.options[-1]), (eps, 0.), (factor, 0.5), (eps, eps.max), (factor, factor.max), (step, 1)):
        control.value = value
        seen.append(picture.value)
    assert len(set(seen)) == len(seen), "a control moved and the picture did not"
    png = re.fullmatch(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)" style="max-width: 100%">', picture.value)
    assert matplotlib.image.imread(io.BytesIO(base64.b64decode(png[1]))).shape[2] == 4 and "after 1 steps" in png[2]


@pytest.mark.parametrize("call, said", [
    (lambda: W.record(-1.), "eps can't be negative"), (lambda: W.record(1., 0.), "factor must be positive"),
    (lambda: W.frame(W.record(1.), W.STEPS + 1), f"steps 0 to {W.STEPS}"), (lambda: W.frame(W.record(1.), -1), f"steps 0 to {W.STEPS}")])
def test_bad_requests_are_one_sentence(call, said):
    with pytest.raises(ValueError, match=said) as e: call()
    assert "\n" not in str(e.value)
