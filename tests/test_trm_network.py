"""The network of chapter 4: parameter counts, both blocks against plain formulas, layouts, starts, and the authors' order of computation."""
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.trm.hrm import HRM
from llmwatch_course.trm.losses import stablemax_cross_entropy
from llmwatch_course.trm.network import AttentionBlock, Embedding, Heads, MixerBlock, Network, Plain, Size, normalise, rounded
from llmwatch_course.trm.official import from_official, theirs as official_name
from llmwatch_course.trm.recursion import TRM, parameters_of
from tests.official_trm import Official, loss, random_state, shapes

G = torch.Generator


@pytest.mark.parametrize("task, mixer, parameters", [("sudoku", "attention", 6_828_034), ("arc", "attention", 6_829_058), ("maze", "attention", 6_822_914),
                                                     ("sudoku", "mlp", 5_028_866), ("arc", "mlp", 18_801_666)])
def test_parameters_of_the_paper(task, mixer, parameters):
    with torch.device("meta"): assert parameters_of(TRM(Size.official(task, mixer))) == parameters_of(Plain(Size.official(task, mixer))) == parameters


def test_parameters_of_hrm_and_of_the_small_ones():
    with torch.device("meta"):
        assert parameters_of(HRM(Size(81, 11, width=512, prefix=1, mixer="attention", heads=8, row=False))) == 27_275_266
        assert parameters_of(TRM(Size.sudoku6())) == parameters_of(Plain(Size.sudoku6())) == 81_793


def test_hidden_widths():
    assert [rounded(d) for d in (81, 96, 97, 512, 916)] == [256, 256, 512, 1536, 2560]
    assert Size(36, 8).hidden == 256 and Size(36, 8, hidden=160).hidden == 160


@pytest.mark.parametrize("kwargs, word", [(dict(mixer="mean"), "mixer is"), (dict(mixer="attention", heads=5), "5 heads")])
def test_sizes_that_make_no_sense(kwargs, word):
    with pytest.raises(ValueError, match=word): Size(36, 8, **kwargs)


def both_blocks(dtype=torch.float64):
    torch.manual_seed(0)
    return MixerBlock(Size(10, 5, width=8, prefix=2, hidden=12, token_hidden=6)).to(dtype), AttentionBlock(Size(10, 5, width=8, prefix=2, mixer="attention", heads=2, hidden=12)).to(dtype)


def test_mixer_normalises_over_tokens_then_over_channels():
    block, h = both_blocks()[0], torch.randn(3, 12, 8, dtype=torch.float64)
    u = h.mT
    gate, up = (u @ block.across.gate_up.weight.T).chunk(2, -1)
    u = u + (torch.nn.functional.silu(gate) * up) @ block.across.down.weight.T
    u = u / (u.square().mean(-1, keepdim=True) + 1e-5).sqrt()                # the last axis of u is tokens
    a = u.mT
    gate, up = (a @ block.within.gate_up.weight.T).chunk(2, -1)
    a = a + (torch.nn.functional.silu(gate) * up) @ block.within.down.weight.T
    assert_close(block(h.transpose(0, 1)).transpose(0, 1), a / (a.square().mean(-1, keepdim=True) + 1e-5).sqrt())


def test_attention_sees_all_and_turns_the_prefix_too():
    block, h = both_blocks()[1], torch.randn(3, 12, 8, dtype=torch.float64)
    state = {"L_level.layers.0.self_attn.qkv_proj.weight": block.qkv.weight, "L_level.layers.0.self_attn.o_proj.weight": block.out.weight}
    ours = normalise(h + Official(state, 10, heads=2).attention("L_level.layers.0.self_attn", h), -1)
    assert_close(block(h), block.within.rows(ours.flatten(0, 1)).view(h.shape), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("i", [0, 1])
def test_gradients_by_finite_differences(i):
    block = both_blocks()[i]
    h = torch.randn((12, 2, 8) if i == 0 else (2, 12, 8), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (h,))


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_layout_changes_memory_and_no_number(mixer):
    net, h = Network(Size(36, 8, mixer=mixer, hidden=32, token_hidden=16)), torch.randn(5, 40, 64)
    laid = net.laid_out(h)
    assert_close(laid, h, rtol=0, atol=0)
    assert (laid.transpose(0, 1) if mixer == "mlp" else laid).is_contiguous()
    out = net(laid)
    assert_close(out, net(h))
    assert out.stride() == laid.stride()                                     # the next call copies nothing either
    assert_close(out.square().mean(-1), torch.ones(5, 40), rtol=1e-3, atol=1e-3)


def test_half_precision_runs_in_half_precision():
    model = Plain(Size.sudoku6()).bfloat16()
    out = model(torch.ones(2, 36, dtype=torch.int64), *model.start(2))
    assert out.logits.dtype == torch.bfloat16 and out.logits.isfinite().all()


def test_embedding_scale_prefix_and_rows():
    size = Size(36, 8, width=256, hidden=32, token_hidden=16)
    embed, tokens = Embedding(size), torch.randint(0, 8, (4, 36), generator=G().manual_seed(0))
    x = embed(tokens)
    assert x.shape == (4, 40, 256) and not x[:, :4].any() and 0.9 < x[:, 4:].std() < 1.1
    rows = torch.randn(4, 256)
    x = embed(tokens, rows)
    assert_close(x[:, 0], 16 * rows)
    assert not x[:, 1:4].any()
    Embedding(size)(tokens).sum().backward()                                 # and the single row learns
    embed(tokens).sum().backward()
    assert embed.row.grad is not None and embed.row.grad.any()


def test_never_stop_at_the_start():
    for verdicts in (1, 2):
        heads = Heads(Size(36, 8, hidden=32, token_hidden=16, verdicts=verdicts))
        logits, q = heads(torch.randn(3, 40, 64))
        assert logits.shape == (3, 36, 8) and q.shape == (3, verdicts) and (q == -5).all()


def test_plain_is_one_call_and_always_done():
    model, tokens = Plain(Size.sudoku6()), torch.randint(1, 8, (3, 36))
    y, z = model.start(3)
    out = model(tokens, y, z)
    assert out.y is y and out.z is z and (out.halt > 0).all()
    assert_close(out.logits, model.heads(model.net(model.embedding(tokens)))[0])
    labels = torch.randint(0, 8, (3, 36))
    assert_close(model.objective(tokens, labels, out, torch.ones(3, dtype=torch.bool)), stablemax_cross_entropy(out.logits, labels))


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_loss_and_gradients_in_the_authors_order(mixer):
    "A training step at T = 3, n = 6: ours beside the official order of computation."
    cells, prefix, width, heads = (36, 4, 64, 4) if mixer == "mlp" else (16, 3, 32, 2)
    g = G().manual_seed(0)
    state = random_state(shapes(cells, 8, width, prefix, 2, mixer, hidden=48, token_hidden=24), g)
    model = from_official(state, cells, heads=heads, prefix=prefix)
    tokens, labels = (torch.randint(1, 8, (8, cells), generator=g) for _ in range(2))
    for a in state.values(): a.requires_grad_()
    theirs = Official(state, cells, heads)
    _, _, logits, q = theirs.trm(tokens, *theirs.start(8, prefix), state["puzzle_emb.weights"].expand(8, -1), 6, 3, prefix)
    value = loss(logits, q, labels)
    value.backward()
    out = model(tokens, *model.start(8))
    mine = model.objective(tokens, labels, out, torch.zeros(8, dtype=torch.bool)).mean()
    mine.backward()
    assert_close(mine.double(), value, rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        wanted = state[official_name(name)].grad
        assert_close(p.grad, wanted[0] if name == "embedding.row" else wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_one_graph_for_the_compiler(mixer):
    "`torch.compile` of a whole supervision step finds nothing it has to leave to Python."
    model = TRM(Size(16, 6, width=16, prefix=2, mixer=mixer, heads=2, hidden=16, token_hidden=16), n=1, cycles=2)
    tokens = torch.randint(1, 6, (2, 16))
    whole = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(whole(tokens, *model.start(2)).logits, model(tokens, *model.start(2)).logits)
