# SPDX-License-Identifier: MIT
"""A step of training as a CUDA graph: launched in one piece, so that a GPU need not wait for Python
(a step of the transformer is thousands of launches)."""
import collections

import torch

WARM = 2  # steps of a kind before it is recorded: what is compiled or allocated once is by then


class Steps:
    """Steps of `optimiser` down a loss. `loss(key, *inputs)` returns it and a list of scalars to
    tell, itself first; it must do the same work for the same key. With `record`, each key's step is recorded,
    and checked against the step as it is; a RuntimeError or AssertionError says that it failed, and
    nothing on the device can be relied on then."""

    def __init__(self, optimiser, loss, record):
        self.optimiser, self.loss, self.record = optimiser, loss, record
        self.seen, self.graphs, self.pool = collections.Counter(), {}, None

    def __call__(self, key, inputs, rate, average):
        """One step; returns what loss() tells, and the gradient's norm, as one vector."""
        self.optimiser.plan(rate, average)
        self.seen[key] += 1
        if not self.record or self.seen[key] <= WARM:
            return self._step(key, inputs)
        if key not in self.graphs:
            return self._first(key, inputs)
        graph, kept, told = self.graphs[key]
        for to, part in zip(kept, inputs):
            to.copy_(part)
        graph.replay()
        return told.clone()

    def _gradient(self, key, inputs):
        loss, told = self.loss(key, *inputs)
        gradient, = torch.autograd.grad(loss, self.optimiser.weights.vector)
        return gradient, [one.detach().float() for one in told]

    def _step(self, key, inputs):
        gradient, told = self._gradient(key, inputs)
        return torch.stack([*told, self.optimiser.apply(gradient)])

    def _first(self, key, inputs):
        gradient, expected = self._gradient(key, inputs)
        expected = torch.stack([*expected, gradient.norm()])
        del gradient
        kept, told = [part.clone() for part in inputs], torch.zeros_like(expected)
        graph = torch.cuda.CUDAGraph()
        # One pool for all: nothing in it outlives a step.
        with torch.cuda.graph(graph, pool=self.pool, stream=torch.cuda.current_stream()):
            told.copy_(self._step(key, kept))
        self.pool = graph.pool()
        self.graphs[key] = graph, kept, told
        graph.replay()
        ends = [0, -1]  # the loss and the gradient
        torch.testing.assert_close(told[ends], expected[ends], rtol=.03, atol=1e-4, equal_nan=True)
        return told.clone()
