"""The computation order of the authors' TRM and HRM, written again for tests and benchmarks.

Casts at every call, the norm by hand, transposes in the mixer, `y + x` in each of the n calls, two outputs of the halting head, the loss in float64
(arXiv 2510.04871 and 2506.21734; the published code was read for names, shapes and order). Nothing here is imported by the course.
"""
import torch
import torch.nn.functional as F


def rounded(width):
    "The hidden width of every SwiGLU there: two thirds of four times the width, up to a multiple of 256."
    return -(-round(4 * width * 2 / 3) // 256) * 256


def shapes(cells, vocab, width, prefix, layers, mixer="mlp", rows=1, hidden=None, token_hidden=None, levels=("L",), table=None):
    "Name to shape, as `state_dict` of the authors' inner model gives them."
    names = {"embed_tokens.embedding_weight": (vocab, width), "lm_head.weight": (vocab, width), "q_head.weight": (2, width), "q_head.bias": (2,),
             "H_init": (width,), "L_init": (width,)}
    if rows: names["puzzle_emb.weights"] = (rows, table or width)
    hidden, token_hidden = hidden or rounded(width), token_hidden or rounded(cells + prefix)
    for level in levels:
        for i in range(layers):
            block = f"{level}_level.layers.{i}."
            if mixer == "mlp":
                names |= {block + "mlp_t.gate_up_proj.weight": (2 * token_hidden, cells + prefix), block + "mlp_t.down_proj.weight": (cells + prefix, token_hidden)}
            else:
                names |= {block + "self_attn.qkv_proj.weight": (3 * width, width), block + "self_attn.o_proj.weight": (width, width)}
            names |= {block + "mlp.gate_up_proj.weight": (2 * hidden, width), block + "mlp.down_proj.weight": (width, hidden)}
    return names


def random_state(names, generator, dtype=torch.float32):
    "Random tensors of those shapes: matrices of spread 1/sqrt(fan-in), everything else of spread 1."
    return {name: (torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) == 2 else 1)).to(dtype) for name, shape in names.items()}


class Official:
    "One supervision step from a state dict of the authors' names. `dtype` is the type every call casts to."
    def __init__(self, state, cells, heads=4, dtype=torch.float32, theta=10000.):
        self.state, self.cells, self.heads, self.dtype, self.theta = state, cells, heads, dtype, theta
        self.layers = 1 + max(int(name.split(".")[2]) for name in state if "_level.layers." in name)

    def matmul(self, name, a):
        return F.linear(a, self.state[name + ".weight"].to(a.dtype))

    def norm(self, a):
        wide = a.to(torch.float32) if a.dtype != torch.float64 else a
        variance = wide.square().mean(-1, keepdim=True)
        return (wide * torch.rsqrt(variance + 1e-5)).to(a.dtype)

    def swiglu(self, name, a):
        gate, up = self.matmul(name + ".gate_up_proj", a).chunk(2, dim=-1)
        return self.matmul(name + ".down_proj", F.silu(gate) * up)

    def turned(self, a, cos, sin):
        first, second = a[..., :a.shape[-1] // 2], a[..., a.shape[-1] // 2:]
        return (a.to(cos.dtype) * cos[:, None] + torch.cat([-second, first], -1).to(cos.dtype) * sin[:, None]).to(a.dtype)

    def attention(self, name, a):
        b, length, width = a.shape
        q, k, v = self.matmul(name + ".qkv_proj", a).view(b, length, 3, self.heads, width // self.heads).unbind(2)
        speed = 1 / self.theta ** (torch.arange(0, width // self.heads, 2, dtype=torch.float32) / (width // self.heads))
        angle = torch.outer(torch.arange(length, dtype=torch.float32), speed).repeat(1, 2).to(a.device)
        q, k = self.turned(q, angle.cos(), angle.sin()), self.turned(k, angle.cos(), angle.sin())
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.matmul(name + ".o_proj", mixed.transpose(1, 2).reshape(b, length, width))

    def level(self, name, hidden, injected):
        hidden = hidden + injected
        for i in range(self.layers):
            block = f"{name}_level.layers.{i}."
            if block + "mlp_t.down_proj.weight" in self.state:
                hidden = hidden.transpose(1, 2)
                hidden = self.norm(hidden + self.swiglu(block + "mlp_t", hidden)).transpose(1, 2)
            else:
                hidden = self.norm(hidden + self.attention(block + "self_attn", hidden))
            hidden = self.norm(hidden + self.swiglu(block + "mlp", hidden))
        return hidden

    def embed(self, tokens, rows, prefix):
        cells = F.embedding(tokens, self.state["embed_tokens.embedding_weight"].to(self.dtype))
        width = cells.shape[-1]
        if prefix:
            rows = F.pad(rows.to(self.dtype), (0, prefix * width - rows.shape[-1]))
            cells = torch.cat([rows.view(-1, prefix, width), cells], dim=-2)
        return width ** 0.5 * cells

    def start(self, b, prefix):
        return tuple(self.state[name].to(self.dtype).expand(b, self.cells + prefix, -1) for name in ("H_init", "L_init"))

    def heads_of(self, y, prefix):
        return self.matmul("lm_head", y)[:, prefix:], F.linear(y[:, 0], self.state["q_head.weight"].to(y.dtype), self.state["q_head.bias"].to(y.dtype)).to(torch.promote_types(y.dtype, torch.float32))

    def trm(self, tokens, y, z, rows, n, cycles, prefix):
        "y, z, logits (b, s, v), q (b, 2): all calls of the last recursion get gradient."
        x = self.embed(tokens, rows, prefix)
        with torch.no_grad():
            for _ in range(cycles - 1):
                for _ in range(n): z = self.level("L", z, y + x)
                y = self.level("L", y, z)
        for _ in range(n): z = self.level("L", z, y + x)
        y = self.level("L", y, z)
        return y.detach(), z.detach(), *self.heads_of(y, prefix)

    def hrm(self, tokens, y, z, rows, n, cycles, prefix):
        "The same for HRM: only the last call of each network gets gradient."
        x = self.embed(tokens, rows, prefix)
        with torch.no_grad():
            for i in range(cycles * n - 1):
                z = self.level("L", z, y + x)
                if i % n == n - 1: y = self.level("H", y, z)
        z = self.level("L", z, y + x)
        y = self.level("H", y, z)
        return y.detach(), z.detach(), *self.heads_of(y, prefix)


def loss(logits, q, labels):
    "Mean over the batch; labels of 0 are ignored. Stable-max in float64, two terms, weight one half on halting."
    a = logits.to(torch.float64)
    s = torch.where(a < 0, 1 / (1 - a + 1e-30), a + 1)
    log_p = torch.log(s / s.sum(-1, keepdim=True))
    valid = labels != 0
    picked = -torch.gather(log_p, -1, labels[..., None]).squeeze(-1)
    cells = torch.where(valid, picked, 0.).sum(-1) / valid.sum(-1).clamp_min(1)
    right = (valid & (logits.argmax(-1) == labels)).sum(-1) == valid.sum(-1)
    return (cells + 0.5 * F.binary_cross_entropy_with_logits(q[:, 0].double(), right.double(), reduction="none")).mean()
