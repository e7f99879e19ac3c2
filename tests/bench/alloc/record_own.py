#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records what our own engine asks its arena for: the daemon with trace=FILE paints images of mixed
sizes, the first half one after another, the rest as a queue, each of another prompt.

usage: record_own.py OUT --model FOLDER [--fluxfs build/fs/fluxfs] [--budget SIZE] [--hollow FOLDER]
                     [--images 50] [--least 512] [--most 1024] [--steps 2] [--seed 17]

With --hollow nothing is computed: FOLDER holds the back end of hollow.c, and FOLDER of --model may
be what `synthetic-checkpoint --hollow` writes, so that FLUX.1-dev's shapes take neither a GPU nor
disk. What is recorded is real all the same: planner, passes, residency and arena are the product's.

OUT is a trace as alloc/trace.h describes it, with a mark after each image.
"""
import argparse
import os
import pathlib
import random
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "fs"))


def read_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--model", required=True)
    parser.add_argument("--fluxfs", default="build/fs/fluxfs")
    parser.add_argument("--hollow")
    parser.add_argument("--budget", default="auto")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--least", type=int, default=512)
    parser.add_argument("--most", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=17)
    return parser.parse_args()


def prompts(options):
    numbers = random.Random(options.seed)
    span = (options.most - options.least) // 16 + 1
    for i in range(options.images):
        width, height = (options.least + 16 * numbers.randrange(span) for _ in range(2))
        yield f"picture {i} --size {width}x{height} --steps {options.steps} --seed {i}\n"


def paint(mount, options):
    texts = list(prompts(options))
    half = len(texts) // 2
    for text in texts[:half]:
        mount.paint(text)
    for job in [mount.prompt(text)[0] for text in texts[half:]]:
        state = mount.wait(job)
        assert state == "done", f"job {job}: {state}: {mount.read('jobs', str(job), 'error')}"


def describe(options, figures):
    version = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], check=True,
                             capture_output=True, text=True).stdout.strip()
    model = pathlib.Path(options.model).name
    nature = "nothing computed, memory only counted" if options.hollow else "computed on the CPU"
    return [f"fluxfs {version}: {options.images} images of {options.least} to {options.most} px a "
            f"side, {options.steps} step(s), model {model}; {nature}; budget {options.budget},",
            f"peak {figures['peak']}, in pages of {figures['page']}.",
            "Recorded by tests/bench/alloc/record_own.py."]


def main():
    options = read_options()
    os.environ["FLUXFS"] = os.path.abspath(options.fluxfs)
    import mount
    part = os.path.abspath(options.out + ".part")
    arguments = [f"--trace={part}", f"--vram-budget={options.budget}",
                 f"--backend={'cuda' if options.hollow else 'cpu'}"]
    if options.hollow:
        arguments.append(f"--module-dir={os.path.abspath(options.hollow)}")
    # (The model comes last: the one that counts.)
    made = mount.Mount(*arguments, f"--model={os.path.abspath(options.model)}")
    try:
        paint(made, options)
        memory = made.read("status", "vram") + made.read("status", "fragmentation")
    finally:
        made.clean()
    lines = pathlib.Path(part).read_text().splitlines()
    os.unlink(part)
    figures = dict(line.split(" ", 1) for line in memory.splitlines())
    text = [f"# {line}" for line in describe(options, figures)] + lines
    pathlib.Path(options.out).write_text("\n".join(text) + "\n")
    print(f"{memory}{len(lines)} lines")


if __name__ == "__main__":
    main()
