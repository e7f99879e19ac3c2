# SPDX-License-Identifier: MIT
"""All trained weights in one vector, and how a step changes them: Muon for the matrices inside the
networks, AdamW for everything else, an average of the weights beside them.

Muon: momentum, made orthogonal by Newton-Schulz steps (Keller Jordan), scaled so that a learning
rate means what it means to AdamW (Moonshot AI, arXiv 2502.16982).
"""
import math
import re

import torch

# Matrices that take a vector of features to another.
INNER = re.compile(r'\.(attn|ff|ff_context|SelfAttention|DenseReluDense|self_attn|mlp)\..*weight$'
                   r'|\.(proj_mlp|proj_out)\.weight$')
APART = ('relative_attention_bias', 'norm_q', 'norm_k', 'norm_added')


def _is_inner(name, shape):
    return len(shape) == 2 and '.' in name and bool(INNER.search(name)) \
        and not any(word in name for word in APART)


class Weights:
    """{part: {name: tensor}} as one fp32 vector, `vector`, with an average, `average`."""

    def __init__(self, parts, device):
        self.entries = [(part, name, tensor.shape) for part, weights in parts.items()
                        for name, tensor in weights.items()]
        tensors = [tensor.flatten() for weights in parts.values() for tensor in weights.values()]
        self.vector = torch.cat(tensors).to(device).requires_grad_()
        self.average = self.vector.detach().clone()
        self.sizes = [math.prod(shape) for *_, shape in self.entries]

    def views(self, kind, vector=None):
        """{part: {name: tensor}} of a type, with gradients that reach the vector."""
        vector = self.vector if vector is None else vector
        parts = {}
        for (part, name, shape), piece in zip(self.entries, vector.to(kind).split(self.sizes)):
            parts.setdefault(part, {})[name] = piece.view(shape)
        return parts

    def averaged(self, kind=torch.float32):
        return self.views(kind, self.average)


class Optimiser:
    """`rates` {part: factor} scales the learning rate of a part; 0 leaves it as it is."""

    def __init__(self, weights, rates=None, betas=(.9, .98), decay=.02, muon=True):
        self.weights, self.betas, self.decay, self.steps = weights, betas, decay, 0
        vector = weights.vector
        self.first, self.second = torch.zeros_like(vector), torch.zeros_like(vector)
        rate = torch.ones_like(vector)
        self.groups, start = {}, 0
        for (part, name, shape), size in zip(weights.entries, weights.sizes):
            factor = (rates or {}).get(part, 1.)
            rate[start:start + size] = factor
            if muon and factor and _is_inner(name, shape):
                self.groups.setdefault((tuple(shape), factor), []).append(start)
                rate[start:start + size] = 0
            start += size
        self.rate = rate
        self.momenta = {key: torch.zeros(len(starts), *key[0], device=vector.device)
                        for key, starts in self.groups.items()}
        # What differs from step to step, in tensors, so that a recorded step can be told it.
        self.now = {name: torch.zeros((), device=vector.device)
                    for name in ('rate', 'adam', 'follow', 'clip')}

    def step(self, rate, average=.999, clip=1.):
        """Takes the gradient; `average` is the share that the average keeps. Returns its norm."""
        self.plan(rate, average, clip)
        gradient, self.weights.vector.grad = self.weights.vector.grad, None
        return self.apply(gradient)

    def plan(self, rate, average=.999, clip=1.):
        """Says what the next apply() shall do."""
        self.steps += 1
        rate *= min(1, self.steps / 50)  # after a restart the moments are young
        b1, b2 = self.betas
        warm = (1 + self.steps) / (10 + self.steps)
        now = dict(rate=rate, follow=1 - min(average, warm), clip=clip,
                   adam=rate * math.sqrt(1 - b2 ** self.steps) / (1 - b1 ** self.steps))
        for name, value in now.items():
            self.now[name].fill_(value)

    @torch.no_grad()
    def apply(self, gradient):
        """Changes the weights as planned, and the gradient; returns its norm."""
        vector = self.weights.vector
        norm = gradient.norm()
        gradient.mul_((self.now['clip'] / (norm + 1e-6)).clamp(max=1.))
        gradient.nan_to_num_(0., 0., 0.)  # one bad step must not end a run
        self._adam(vector, gradient)
        for (shape, factor), starts in self.groups.items():
            self._muon(vector, gradient, (shape, factor), starts)
        self.weights.average.lerp_(vector, self.now['follow'])
        return norm

    def _adam(self, vector, gradient):
        b1, b2 = self.betas
        self.first.lerp_(gradient, 1 - b1)
        self.second.lerp_(gradient.square(), 1 - b2)
        change = self.first / (self.second.sqrt() + 1e-8) * self.now['adam']
        vector.sub_(change.mul_(self.rate))

    def _muon(self, vector, gradient, key, starts):
        (shape, factor), size = key, math.prod(key[0])
        rate, momentum = self.now['rate'] * factor, self.momenta[key]
        new = torch.stack([gradient[start:start + size].view(shape) for start in starts])
        momentum.lerp_(new, .05)
        change = orthogonal(new.lerp(momentum, .95)) * (.2 * math.sqrt(max(shape)) * rate)
        pieces = [vector[start:start + size].view(shape) for start in starts]
        torch._foreach_mul_(pieces, 1 - rate * self.decay)
        torch._foreach_sub_(pieces, list(change))


def orthogonal(matrices, steps=5):
    """Matrices [N, rows, columns] with singular values near 1 and the same singular vectors."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(steps):
        square = x @ x.mT
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return (x.mT if tall else x).float()


def schedule(progress, warm=.02, flat=.6):
    """The learning rate's share at a point of a stage: up, level, and down to nothing."""
    if progress < warm:
        return progress / warm + .01
    return 1. if progress < flat else max((1 - progress) / (1 - flat), .002)
