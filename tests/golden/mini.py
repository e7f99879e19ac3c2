# SPDX-License-Identifier: MIT
"""Paints three prompts with etc/mini in diffusers' FluxPipeline, in fp32: the pictures that the
end-to-end test compares with.

usage: mini.py [--model FOLDER] [--given FOLDER] [--bf16] [OUT]    (OUT: tests/golden/mini)

--bf16 paints nothing anew but measures how near diffusers in bf16 comes to the pictures there.
--given FOLDER has given.json and given.safetensors of an earlier run elsewhere: the distance to
its embeddings, first step and final latents is printed.
"""
import argparse
import json
import os

import numpy as np
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
RUNS = [
    dict(prompt='a large red circle on a white background',
         width=256, height=256, steps=20, guidance=3.5, seed=3),
    dict(prompt='a small blue star to the left of a large yellow moon in the night sky',
         width=256, height=256, steps=20, guidance=3.5, seed=7),
    dict(prompt='a glossy orange circle at sunset',
         width=192, height=320, steps=8, guidance=2.0, seed=42),
]
KEPT = 2  # the run whose final latents are committed too


def paint(pipe, run):
    """The picture and what led to it: text embeddings, noise, first step, final latents."""
    values = {}

    def keep(_pipe, step, _timestep, state):
        values['step1' if step == 0 else 'final'] = state['latents'][0].clone()
        return state
    generator = torch.Generator('cpu').manual_seed(run['seed'])
    noise = torch.randn(1, pipe.vae.config.latent_channels, run['height'] // 8,
                        run['width'] // 8, generator=generator)
    tokens = pipe._pack_latents(noise, *noise.shape).to(pipe.dtype)
    length = pipe.tokenizer_2.model_max_length
    text, pooled, _ = pipe.encode_prompt(run['prompt'], max_sequence_length=length)
    picture = pipe(run['prompt'], width=run['width'], height=run['height'], latents=tokens,
                   num_inference_steps=run['steps'], guidance_scale=run['guidance'],
                   max_sequence_length=length, callback_on_step_end=keep).images[0]
    values |= dict(t5=text[0], pooled=pooled[0], noise=noise[0])
    return picture, values, pipe.scheduler.sigmas


def psnr(picture, other):
    difference = np.asarray(picture, np.float64) - np.asarray(other, np.float64)
    return 10 * np.log10(255**2 / max(np.mean(difference**2), 1e-12))


def measure_bf16(model, out):
    """Adds to runs.json the PSNR of diffusers' own pictures in bf16."""
    from PIL import Image
    pipe = FluxPipeline.from_pretrained(model, dtype=torch.bfloat16).to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    with open(f'{out}/runs.json') as file:
        runs = json.load(file)
    for run in runs:
        picture = paint(pipe, run)[0]
        exact = Image.open(f'{out}/{run["picture"]}').convert('RGB')
        run['bf16_db'] = round(float(psnr(picture, exact)), 1)
        print(f'{run["picture"]}: {run["bf16_db"]} dB in bf16')
    with open(f'{out}/runs.json', 'w') as file:
        json.dump(runs, file, indent=1)
        file.write('\n')


def compare(given, number, values, picture, sigmas):
    """Prints the relative L2 distance of every value that `given` has."""
    from PIL import Image
    theirs = load_file(f'{given}/given.safetensors')
    with open(f'{given}/given.json') as file:
        run = json.load(file)[number]
    distances = []
    for name in ('t5', 'pooled', 'step1', 'final'):
        exact = theirs[f'{number}.{name}'].double()
        distance = (values[name].double() - exact).norm() / exact.norm()
        distances.append(f'{name} {distance:.1e}')
    sigma = (sigmas - torch.tensor(run['sigmas'])).abs().max()
    other = Image.open(f'{given}/given-{number}.png').convert('RGB')
    print(f'{number}: {", ".join(distances)}, sigmas {sigma:.1e}, '
          f'picture {psnr(picture, other):.1f} dB')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--model', default=f'{HERE}/../../etc/mini')
    parser.add_argument('--given')
    parser.add_argument('--bf16', action='store_true')
    parser.add_argument('out', nargs='?', default=f'{HERE}/mini')
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    torch.set_grad_enabled(False)
    if options.bf16:
        measure_bf16(options.model, options.out)
        return
    pipe = FluxPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    runs = []
    for number, run in enumerate(RUNS):
        picture, values, sigmas = paint(pipe, run)
        picture.save(f'{options.out}/{number}.png', optimize=True)
        runs.append(run | dict(picture=f'{number}.png', sigmas=sigmas.tolist()))
        if number == KEPT:
            save_file({'final': values['final'].contiguous()},
                      f'{options.out}/{number}.safetensors')
            runs[-1]['latents'] = f'{number}.safetensors'
        if options.given:
            compare(options.given, number, values, picture, sigmas)
    with open(f'{options.out}/runs.json', 'w') as file:
        json.dump(runs, file, indent=1)
        file.write('\n')
    measure_bf16(options.model, options.out)


if __name__ == '__main__':
    main()
