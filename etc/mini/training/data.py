# SPDX-License-Identifier: MIT
"""Scenes by the hundred thousand: sampled and put into words by many processes, then painted,
encoded and kept where the training is."""
import functools

import numpy as np
import torch

import draw
import model
import scenes
import vocabulary

CAPTIONS = 2  # ways to say each scene


@functools.cache
def _tokenizers(folder):
    return vocabulary.Tokenizers(folder)


def _some(task):
    seed, count, folder, sizes = task
    words = _tokenizers(folder)
    sampler, speaker = scenes.Sampler(seed), scenes.Speaker(seed)
    rows, which, t5, clip = [], [], [], []
    for _ in range(count):
        scene = sampler.scene()
        # Half of all pictures have the first size.
        number = 0 if sampler.random.random() < .5 else sampler.random.randrange(len(sizes))
        said = [speaker.caption(scene) for _ in range(CAPTIONS)]
        rows.append(scenes.row(scene, *sizes[number]))
        which.append(number)
        t5.append([words.t5(text) for text in said])
        clip.append([words.clip(text) for text in said])
    return (np.stack(rows), np.array(which), np.array(t5, np.int16), np.array(clip, np.int16))


def sample(pool, seed, count, folder, sizes, each=1000):
    """Rows [N, …], which size each has, and the tokens of its captions [N, CAPTIONS, …]."""
    tasks = [(f'{seed} {i}', min(each, count - i), folder, sizes) for i in range(0, count, each)]
    return [np.concatenate(parts) for parts in zip(*pool.map(_some, tasks, chunksize=1))]


class World:
    """All that was sampled, on the training's device, apart by size."""

    def __init__(self, pool, seed, count, folder, sizes, device):
        rows, which, t5, clip = sample(pool, seed, count, folder, sizes)
        self.sizes, self.device = sizes, device
        self.rows, self.t5, self.clip = [], [], []
        for number in range(len(sizes)):
            some = which == number
            for kept, values in ((self.rows, rows), (self.t5, t5), (self.clip, clip)):
                kept.append(torch.from_numpy(values[some]).to(device))
        counts = np.array([len(part) for part in self.rows], float)
        self.shares = counts / counts.sum()
        words = vocabulary.Tokenizers(folder)
        self.nothing = [torch.tensor([encode('')], device=device)
                        for encode in (words.t5, words.clip)]

    def pick(self, batch):
        """A size by chance, and so many of its scenes as have about the pixels of `batch` pictures
        of the first size."""
        number = np.random.choice(len(self.sizes), p=self.shares)
        area = np.prod(self.sizes[0]) / np.prod(self.sizes[number])
        return number, self.some(number, max(1, round(batch * area)))

    def some(self, number, count):
        return torch.randint(len(self.rows[number]), (count,), device=self.device)

    def words(self, number, some, drop=0.):
        """Tokens of a caption of each scene; of a share of them, those of nothing."""
        way = torch.randint(CAPTIONS, some.shape, device=self.device)
        dropped = (torch.rand(some.shape, device=self.device) < drop)[:, None]
        return [torch.where(dropped, nothing, ids[number][some, way].long())
                for ids, nothing in zip((self.t5, self.clip), self.nothing)]

    @torch.no_grad()
    def encode(self, weights, config, kind, each=128):
        """Latents of all scenes as tokens, with what each shows."""
        self.latents, self.labels = [], []
        for (width, height), rows in zip(self.sizes, self.rows):
            latents, labels = [], []
            for some in rows.split(each):
                picture = draw.render(some, width, height).to(kind) * 2 - 1
                mean, _ = model.encode(weights, config, picture)
                mean = (mean - config['shift_factor']) * config['scaling_factor']
                latents.append(model.pack(mean).to(torch.bfloat16))
                labels.append(draw.labels(some, width, height).flatten(1, 2).to(torch.uint8))
            self.latents.append(torch.cat(latents))
            self.labels.append(torch.cat(labels))


# What a caption can be asked for, as columns of a row.
QUESTIONS = 6 + draw.THINGS * 6 + 1 + draw.WORD
ANSWERS = 28


def answers(rows):
    """What rows [B, …] show: [B, QUESTIONS] whole numbers, -1 where there is nothing to say."""
    things = rows[:, draw.FIRST_THING:draw.SIGN].unflatten(1, (draw.THINGS, -1))
    sign = rows[:, draw.SIGN:]
    radii = torch.tensor(list(scenes.SIZES.values()), device=rows.device)
    size = (things[:, :, 5:6].clamp(min=.01).log() - radii.log()).abs().argmin(-1)
    place = [torch.sign(things[:, :, i]) * (things[:, :, i].abs() > .2) + 1 for i in (3, 4)]
    about = torch.stack([things[:, :, 1], things[:, :, 2], things[:, :, 6], size, *place], -1)
    about = torch.where(things[:, :, :1] > 0, about, -1.)
    about[:, :, 0] = torch.where(things[:, :, 0] > 0, about[:, :, 0], float(len(draw.SHAPES)))
    ground, second = rows[:, :3].clone(), rows[:, 0]
    ground[:, 1] = torch.where(second > 2, -1., ground[:, 1])
    ground[:, 2] = torch.where((second == 1) | (second == 2), ground[:, 2], -1.)
    light = torch.stack([rows[:, 4] + 1, rows[:, 5], sign[:, 0]], 1)
    board = torch.where(sign[:, :1] > 0, sign[:, 4:5], -1.)
    word = torch.where(sign[:, :1] > 0, sign[:, 6:] + 1, -1.)
    return torch.cat([ground, light, about.flatten(1), board, word], 1).round().long()


def question_plan(width, pooled):
    """Weights of the reader that asks the text encoders for all of it (not part of the model)."""
    return {'ask': torch.randn(QUESTIONS, width) / width ** .5,
            'answer': torch.randn(QUESTIONS, ANSWERS, width) * .02,
            'pooled': torch.randn(QUESTIONS * ANSWERS, pooled) * .02}


def read(reader, text, pooled):
    """Scores [B, QUESTIONS, ANSWERS] from T5's tokens and from CLIP's vector."""
    share = (text @ reader['ask'].mT).float().softmax(1).to(text.dtype)
    found = torch.einsum('btq,btw->bqw', share, text)
    from_tokens = torch.einsum('bqw,qaw->bqa', found, reader['answer'])
    return from_tokens.float(), (pooled @ reader['pooled'].mT).float().unflatten(1, (QUESTIONS, -1))
