#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Trains the embedded model, in one go or in pieces: what is in --to is gone on from.

usage: train.py [--to FOLDER] [--minutes N] [--set NAME=VALUE …] [--smoke]

FOLDER (default: etc/mini) gets a checkpoint in the diffusers layout every minute; its training.json
remembers how far the stages have come. A folder without one, or none, starts from nothing.
--minutes ends this run in time, with everything saved. --set changes the recipe (see Recipe).
--smoke runs all stages in a minute or two on a CPU with a tiny model, and wants --to. See
README.md.
"""
import argparse
import dataclasses
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback

import numpy as np
import torch
from PIL import Image

import data
import judge
import model
import quality
import scenes
import shapes
import sheet
import stages
import store
import vocabulary
from verdict import verdict

HERE = os.path.dirname(os.path.abspath(__file__))
STAGES = ('vae', 'text', 'flow', 'distill')
SAVE_S, FINISH_S = 60, 30  # between checkpoints; for the last one and its pictures


@dataclasses.dataclass
class Recipe:
    """What --set can change. Minutes are those of training itself, on one H100 or H200."""
    vae: float = 7.           # minutes of each stage
    text: float = 1.5
    flow: float = 24.
    distill: float = 2.5
    scenes: int = 80_000      # new ones for every run
    crop: int = 128           # pixels, of the autoencoder's first pictures
    crop_batch: int = 128
    whole_batch: int = 48
    vae_rate: float = 1e-3
    text_batch: int = 1024
    text_rate: float = 2e-3
    batch: int = 256
    rate: float = 1.5e-3
    average: float = .9995
    tap: int = 3              # blocks before tokens are asked for what they show
    naming: float = .1        # how much that counts at first
    distill_rate: float = 4e-4
    most_guidance: float = 5. # above 1
    compile: int = 1          # whether small operations are fused, on a GPU
    graphs: int = 1           # whether steps are recorded as CUDA graphs, on a GPU
    evaluate_s: float = 120.  # between evaluations
    tests: int = 96           # held-out prompts in each


SMOKE = dict(vae=.15, text=.08, flow=.2, distill=.1, scenes=400, crop=32, crop_batch=8,
             whole_batch=4, text_batch=64, batch=16, tap=1, evaluate_s=8., tests=4)
SMOKE_SIZES = [(64, 64), (48, 80), (96, 64)]


def smoke_configs():
    """Tiny, but with heads of 128 and every kind of block."""
    return dict(
        vae=shapes.VAE | dict(block_out_channels=[8, 8, 16, 16], norm_num_groups=8),
        text_encoder=shapes.CLIP | dict(hidden_size=32, intermediate_size=64, projection_dim=32),
        text_encoder_2=shapes.T5 | dict(d_model=48, d_kv=24, num_heads=2, d_ff=64, num_layers=2,
                                        num_decoder_layers=2),
        transformer=shapes.FLUX | dict(num_attention_heads=1, num_single_layers=1,
                                       joint_attention_dim=48, pooled_projection_dim=32))


class Run:
    """One run of this program: the model as far as it is, the clock, and what is being trained."""

    def __init__(self, options, recipe, pool):
        self.recipe, self.to, self.pool, self.smoke = recipe, options.to, pool, options.smoke
        self.start = time.monotonic()
        self.deadline = self.start + options.minutes * 60 - FINISH_S if options.minutes else None
        self.sizes = SMOKE_SIZES if options.smoke else scenes.SIZES_PX
        self.state = store.load_state(self.to)
        fresh = self.state is None
        self.state = self.state or dict(minutes=dict.fromkeys(STAGES, 0.), runs=0, log=[])
        self.state['runs'] += 1
        self.scratch = tempfile.mkdtemp(prefix='mini-')
        if fresh:
            self._begin()
        else:
            self._load()
        self.training = None  # the Weights of the stage at work
        self.step = 0
        self.tests = quality.held_out_scenes(recipe.tests)
        self.say('sampling scenes')
        self.device = torch.device('cpu')
        self.world = data.World(pool, f'run {self.state["runs"]}', recipe.scenes, self.scratch,
                                self.sizes, self.device)

    def _begin(self):
        self.say('nothing to go on from: a new model')
        vocabulary.make(self.scratch)
        generator = torch.Generator().manual_seed(1)
        self.configs = smoke_configs() if self.smoke else \
            {part: dict(config) for part, config in shapes.CONFIGS.items()}
        self.parts = {part: shapes.fresh(part, config, generator)
                      for part, config in self.configs.items()}

    def _load(self):
        self.say(f'going on: {self.state["minutes"]} minutes done')
        for name in ('tokenizer', 'tokenizer_2'):
            shutil.copytree(f'{self.to}/{name}', f'{self.scratch}/{name}')
        self.parts, self.configs = {}, {}
        for part in shapes.CONFIGS:
            self.parts[part], self.configs[part] = store.load_part(self.to, part)

    def to_device(self):
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self.kind = torch.bfloat16 if self.device.type == 'cuda' else torch.float32
        if self.device.type == 'cuda':
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            # Both crashed in the backward pass on PyTorch 2.11; flash attention is left.
            torch.backends.cuda.enable_cudnn_sdp(False)
            torch.backends.cuda.enable_mem_efficient_sdp(False)
            model.fuse(bool(self.recipe.compile))
            # Recording needs a stream that is not the default one, and the same from the start.
            torch.cuda.set_stream(torch.cuda.Stream())
            self.say(f'on {torch.cuda.get_device_name()}, PyTorch {torch.__version__}')
        world = self.world
        world.device = self.device
        for name in ('rows', 't5', 'clip'):
            setattr(world, name, [part.to(self.device) for part in getattr(world, name)])
        world.nothing = [part.to(self.device) for part in world.nothing]

    def records(self):
        return self.device.type == 'cuda' and bool(self.recipe.graphs)

    def say(self, text):
        line = f'{time.monotonic() - self.start:6.1f} s  {text}'
        print(line, flush=True)
        self.state['log'].append(line)

    def words(self):
        return vocabulary.Tokenizers(self.scratch)

    def current(self, part, kind=torch.float32):
        """A part's weights as they would be saved now."""
        averaged = self.training.averaged() if self.training else {}
        weights = averaged.get(part, self.parts[part])
        return {name: tensor.detach().to(self.device, kind) for name, tensor in weights.items()}

    def held_out_rows(self):
        size = self.world.sizes[0]
        rows = np.stack([scenes.row(scene, *size) for scene, _ in self.tests])
        return torch.from_numpy(rows).to(self.device)

    def time_left(self):
        return float('inf') if self.deadline is None else self.deadline - time.monotonic()

    def steps(self, stage):
        """Yields the progress of a stage, 0 … 1, before each of its steps, as long as there is
        time; saves meanwhile and at the end."""
        planned, before = getattr(self.recipe, stage), self.state['minutes'][stage]
        if stage == STAGES[-1]:  # which ends calmly even if it has to end early
            planned = min(planned, before + self.time_left() / 60)
        self.stage, self.step = stage, 0
        begin = last_save = self.last_report = self.last_evaluation = time.monotonic()
        self.steps_reported = 0
        while True:
            now = time.monotonic()
            done = before + (now - begin) / 60
            if done >= planned or self.time_left() <= 0:
                break
            if now - last_save > SAVE_S:
                self.state['minutes'][stage] = done
                self.save()
                last_save = now
            self.progress = done / planned
            yield self.progress
            self.step += 1
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        self.state['minutes'][stage] = min(before + (time.monotonic() - begin) / 60, planned)
        for part, weights in self.training.averaged().items():
            if part in self.parts:
                self.parts[part] = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        self.training = None
        self.save()

    def reports(self):
        """Whether it is time for a line about the training."""
        return self.step == 19 or time.monotonic() - self.last_report > (2 if self.smoke else 20)

    def report(self, text):
        now = time.monotonic()
        steps = self.step - self.steps_reported
        rate = f'{steps / (now - self.last_report):.1f} steps/s' if steps else ''
        self.say(f'{self.stage} {100 * self.progress:.0f} %, step {self.step}, {rate}: {text}')
        self.last_report, self.steps_reported = time.monotonic(), self.step

    def evaluates(self):
        return time.monotonic() - self.last_evaluation > self.recipe.evaluate_s

    def evaluate(self, **how):
        """Paints the held-out prompts, and says what share is right. That it should fail is no
        reason to lose a training."""
        try:
            self.say(f'{how}: ' + self.judged(**how))
        except (RuntimeError, ValueError, IndexError) as error:
            self.say(f'{how}: no evaluation: {error!r}')
        self.last_evaluation = time.monotonic()

    def judged(self, **how):
        size = self.world.sizes[0]
        pictures = torch.cat([stages.paint(self, [caption for _, caption in self.tests[i:i + 32]],
                                           size, **how) for i in range(0, len(self.tests), 32)])
        seen = self.pool.map(judge.look, to_bytes(pictures))
        results = [(scene, verdict(scene, one)) for (scene, _), one in zip(self.tests, seen)]
        cells = []
        for title, layouts in quality.ROWS.items():
            rights = [all(right.values()) for scene, right in results if scene.layout in layouts]
            cells.append(f'{title} {quality.share(rights)}')
        return ', '.join(cells)

    def save(self):
        """The checkpoint as it is now."""
        parts = {part: (self.configs[part], self.current(part)) for part in shapes.CONFIGS}
        store.save(self.to, self.scratch, parts, self.state)

    def sheet(self, path, **how):
        """The sixteen fixed prompts on one sheet."""
        pictures = stages.paint(self, sheet.PROMPTS, self.world.sizes[0], **how)
        sheet.assemble([Image.fromarray(one) for one in to_bytes(pictures)]).save(path)


def to_bytes(pictures):
    return list((pictures * 255 + .5).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def train(run):
    """All stages that are not done, as far as time allows."""
    encoded = False
    for stage in STAGES:
        if run.state['minutes'][stage] >= getattr(run.recipe, stage):
            continue
        if stage in ('flow', 'distill') and not encoded:
            if run.time_left() < (0 if run.smoke else 150):
                run.say(f'too little time left for {stage}')
                break
            if run.state['minutes']['flow'] == 0:
                stages.measure_latents(run)
            weights = {name: tensor.to(run.device, run.kind) for name, tensor in
                       run.parts['vae'].items()}
            run.world.encode(weights, run.configs['vae'], run.kind)
            encoded = True
            run.say(f'{run.recipe.scenes} scenes encoded')
        getattr(stages, stage)(run)
        if run.time_left() <= 0:
            break
    done = all(run.state['minutes'][stage] >= getattr(run.recipe, stage) for stage in STAGES)
    if encoded:
        how = dict(guidance=3.5) if run.state['minutes']['distill'] else dict(cfg=2.5)
        run.evaluate(**how)
        run.sheet(f'{run.to}/samples.png', **how)
    run.say('trained' if done else f'to be continued: {run.state["minutes"]} minutes done')
    run.save()


def read_options():
    parser = argparse.ArgumentParser()
    parser.add_argument('--to')
    parser.add_argument('--minutes', type=float)
    parser.add_argument('--set', nargs='*', default=[], metavar='NAME=VALUE')
    parser.add_argument('--smoke', action='store_true')
    options = parser.parse_args()
    if options.smoke and not options.to:
        sys.exit('train.py: --smoke would replace etc/mini: say --to FOLDER')
    options.to = options.to or os.path.dirname(HERE)
    recipe = Recipe(**(SMOKE if options.smoke else {}))
    kinds = {field.name: field.type for field in dataclasses.fields(Recipe)}
    for change in options.set:
        name, _, value = change.partition('=')
        if name not in kinds:
            sys.exit(f'train.py: --set {change}: the recipe has no {name}')
        setattr(recipe, name, kinds[name](value))
    return options, recipe


def again(options, begin):
    """Starts this program anew, from the last checkpoint and without CUDA graphs: an error on a GPU
    can leave the whole process unusable."""
    arguments = ['--to', options.to, '--set', *options.set, 'graphs=0']
    if options.minutes:
        left = options.minutes - (time.monotonic() - begin) / 60
        if left < 1:
            sys.exit('train.py: too little time left to start again')
        arguments += ['--minutes', f'{left:.3f}']
    arguments += ['--smoke'] * options.smoke
    print('starting again without CUDA graphs', flush=True)
    os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), *arguments])


def main():
    options, recipe = read_options()
    begin, failed = time.monotonic(), False
    torch.manual_seed(time.time_ns() % 2**31)
    with multiprocessing.get_context('fork').Pool(len(os.sched_getaffinity(0))) as pool:
        # Only now: processes are forked before anything touches the GPU.
        if not options.smoke and not torch.cuda.is_available():
            sys.exit('train.py: no GPU that PyTorch can use (--smoke --to FOLDER runs without)')
        run = Run(options, recipe, pool)
        try:
            run.to_device()
            train(run)
        except (RuntimeError, AssertionError):
            failed = run.records()
            if not failed:
                raise
            traceback.print_exc()
        finally:
            shutil.rmtree(run.scratch, ignore_errors=True)
    if failed:
        again(options, begin)


if __name__ == '__main__':
    main()
