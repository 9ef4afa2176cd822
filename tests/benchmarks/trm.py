"""Chapter 4: a training step beside the authors' order of computation, halting inference beside sixteen steps for all, puzzles a minute. About three minutes on two cores; needs a C++ compiler for the compiled rows."""
import shutil, statistics, time
import torch
from llmwatch_course.trm.evaluate import evaluate, solve_all
from llmwatch_course.trm.network import Size
from llmwatch_course.trm.official import from_official
from llmwatch_course.trm.recursion import TRM
from llmwatch_course.trm.sudoku import Box, generate, to_tokens
from tests.official_trm import Official, loss, random_state, shapes

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def rows() -> list[dict]:
    return [*(gpu_steps() if CUDA else cpu_steps()), *halting(), data()]


def clocked(call) -> float:
    "Seconds of a call: what the cores worked on a CPU (other programs don't count), what passed on a GPU."
    if not CUDA:
        start = time.process_time(); call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter(); call(); torch.cuda.synchronize()
    return time.perf_counter() - start


def pair(what, ours, peer, aim="", repeats=7):
    "Both in turns after two rounds to warm up: medians in ms, median and range of the ratio peer / ours."
    times = [(clocked(ours), clocked(peer)) for _ in range(repeats + 2)][2:]
    mine, theirs = (round(1000 * statistics.median(t), 1) for t in zip(*times))
    ratios = sorted(b / a for a, b in times)
    return dict(what=what, ours=mine, peer=theirs, ratio=round(statistics.median(ratios), 2), spread=f"{ratios[0]:.2f}-{ratios[-1]:.2f}", unit="ms", aim=aim)


def both_sides(cells, vocab, prefix, batch, mixer="mlp", dtype=torch.float32, compiled=(False, False), **widths):
    "A training step of ours and one in the authors' order, from the same weights, at T = 3 and n = 6."
    g = torch.Generator().manual_seed(0)
    state = random_state(shapes(cells, vocab, widths.pop("width", 64), prefix, 2, mixer, **widths), g)
    heads = max(1, state["H_init"].numel() // 64)
    model = from_official(state, cells, prefix=prefix, heads=heads).to(DEVICE)
    state = {name: a.to(DEVICE).requires_grad_() for name, a in state.items()}
    tokens, labels = (torch.randint(2, vocab, (batch, cells), generator=g).to(DEVICE) for _ in range(2))
    y, z = (model.net.laid_out(a.to(dtype)) for a in model.start(batch))
    last = torch.zeros(batch, dtype=torch.bool, device=DEVICE)
    theirs = Official(state, cells, heads, dtype)
    u, v = (a.detach().contiguous() for a in theirs.start(batch, prefix))
    rows = state["puzzle_emb.weights"].expand(batch, -1)
    def ours():
        model.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32): out = model(tokens, y, z)
        model.objective(tokens, labels, out, last).mean().backward()
    def forward(): return theirs.trm(tokens, u, v, rows, 6, 3, prefix)[2:]
    if compiled[0]: model.net.compile()
    step = torch.compile(forward) if compiled[1] else forward
    def peer():
        for a in state.values(): a.grad = None
        loss(*step(), labels).backward()
    return ours, peer


def cpu_steps():
    "D = 64, l = 40, 64 boards, float32. Gradients agree to 1e-4: tests/test_trm_network.py."
    toy, what = dict(cells=36, vocab=8, prefix=4, batch=64, hidden=160, token_hidden=80), "TRM training step, d = 64, l = 40, 64 boards"
    compilers = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    threads = torch.get_num_threads()
    for cores, said in ((1, "one thread"), (2, "two threads")):
        torch.set_num_threads(cores)
        yield pair(f"{what}, {said}: eager, beside the official order", *both_sides(**toy))
        if compilers: yield pair(f"{what}, {said}: `net.compile()`, beside the official order", *both_sides(**toy, compiled=(True, False)), ">= 1.3")
    torch.set_num_threads(threads)


def gpu_steps():
    "The paper's Sudoku models in bfloat16, 768 boards, 97 tokens as published and 96 aligned."
    for mixer in ("mlp", "attention"):
        for prefix in (16, 15):
            big = dict(cells=81, vocab=11, prefix=prefix, batch=768, width=512, mixer=mixer, dtype=torch.bfloat16)
            what = f"TRM training step, {mixer}, d = 512, l = {81 + prefix}, 768 boards"
            yield pair(f"{what}: eager, beside the official order", *both_sides(**big))
            yield pair(f"{what}: compiled, beside the official order", *both_sides(**big, compiled=(True, False)), ">= 2")
            yield pair(f"{what}: compiled, beside the compiled official order", *both_sides(**big, compiled=(True, True)), ">= 1.3, better 1.6")
            torch.compiler.reset()


def halting(boards=256, limit=16, sure=3.0):
    "The shipped 6x6 solver on unseen boards: network calls with halting and refill, beside all steps for all; `sure` as lesson 9 chooses it."
    from llmwatch_course.foundations.settings import settings
    from safetensors.torch import load_file
    path = settings().data_dir / "checkpoints/trm-sudoku6.safetensors"
    if not path.exists(): return [dict(what="halting inference: not measured, no checkpoint", ours="", peer="", ratio="", spread="", unit="", aim="")]
    model = TRM(Size.sudoku6()).to(DEVICE)
    model.load_state_dict({name: a.float() for name, a in load_file(path).items()})
    puzzles = generate(boards, Box(2, 3), seed=9_000_000)
    tokens, labels = (to_tokens(p).to(DEVICE) for p in (puzzles.puzzles, puzzles.answers))
    answers, steps, calls = solve_all(model, tokens, limit=limit, sure=sure)
    halted, full = (answers == labels).all(1).float().mean().item(), evaluate(model, tokens, labels, steps=limit).exact[-1].item()
    return [dict(what=f"{boards} boards of 6x6, supervision steps: halting ({100 * halted:.1f} % right) beside {limit} for all ({100 * full:.1f} %)",
                 ours=int(steps.sum()), peer=boards * limit, ratio=round(boards * limit / int(steps.sum()), 2), spread="", unit="steps", aim=">= 4, within 0.5 points")]


def data(n=200):
    "Minimal 9x9 puzzles a minute on one core; numba where it is installed."
    generate(2, Box(3, 3), seed=0)
    rate = round(60 * n / clocked(lambda: generate(n, Box(3, 3), seed=1)))
    return dict(what="minimal 9x9 Sudokus generated in a minute, beside the goal", ours=rate, peer=1000, ratio=round(rate / 1000, 2), spread="", unit="puzzles/min", aim=">= 1000")
