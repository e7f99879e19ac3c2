# SPDX-License-Identifier: MIT
"""The peer of the CPU benchmark: one picture by diffusers' FluxPipeline in fp32, then warm ones.

usage: diffusers_cpu.py --model FOLDER --prompt TEXT --out FILE [--size WxH] [--steps N]
                        [--guidance G] [--seed S] [--threads N] [--warm N]

Prints one line of JSON:
  command_s  from the start of this process (imports included) to the first PNG on the disk
  import_s, load_s, first_s  what it is made of: imports, the checkpoint, the first picture
  warm_s     N further pictures, prompt to PNG on the disk, each of another prompt and seed
"""
import os
import time


def process_age():
    """Seconds since the kernel started this process (it counts in hundredths)."""
    with open('/proc/self/stat') as file:
        started = int(file.read().rsplit(')', 1)[1].split()[19]) / os.sysconf('SC_CLK_TCK')
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


AGE, START = process_age(), time.perf_counter()


def age():
    return AGE + time.perf_counter() - START


def read_options():
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument('--model', required=True)
    parser.add_argument('--prompt', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--size', default='256x256')
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--guidance', type=float, default=3.5)
    parser.add_argument('--seed', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--warm', type=int, default=1)
    return parser.parse_args()


def main():
    options = read_options()
    os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = str(options.threads)
    import json
    import torch
    from diffusers import FluxPipeline
    torch.set_num_threads(options.threads)
    imported = age()
    pipe = FluxPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    loaded = age()
    width, height = map(int, options.size.split('x'))

    def paint(prompt, seed):
        picture = pipe(prompt, width=width, height=height, num_inference_steps=options.steps,
                       guidance_scale=options.guidance,
                       max_sequence_length=pipe.tokenizer_2.model_max_length,
                       generator=torch.Generator('cpu').manual_seed(seed)).images[0]
        picture.save(options.out)

    paint(options.prompt, options.seed)
    command = age()
    warm = []
    for number in range(1, options.warm + 1):
        start = time.perf_counter()
        paint(f'{options.prompt} {number}', options.seed + number)
        warm.append(time.perf_counter() - start)
    print(json.dumps(dict(
        command_s=round(command, 3), import_s=round(imported, 3),
        load_s=round(loaded - imported, 3), first_s=round(command - loaded, 3),
        warm_s=[round(seconds, 3) for seconds in warm], threads=torch.get_num_threads(),
        torch=torch.__version__)))


if __name__ == '__main__':
    main()
