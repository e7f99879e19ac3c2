# SPDX-License-Identifier: MIT
"""Writes the golden data: tiny checkpoints, and what diffusers computes from them in fp32.

usage: reference.py [--bf16] [OUT]    (OUT: tests/golden/data; README.md says what is in it)

--bf16 computes nothing anew but how far diffusers in bf16 is from what is there.

All the maths is that of diffusers and transformers; hooks take the values on their way.
"""
import glob
import json
import os
import shutil
import sys

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from safetensors.torch import load_file, save_file

import numpy as np

from checkpoints import CHECKPOINTS, dynamic_shift, static_shift, write_checkpoint, write_json

HERE = os.path.dirname(os.path.abspath(__file__))
MINI = f'{HERE}/../../etc/mini'
PROMPT = 'a small Red star, above 2 blue-green moons!'
NEGATIVE = 'a grey square'
GUIDED_TWICE = ('sharded-bf16', 'mixed')  # checkpoints with a run under true CFG
ENCODED = ('single-f32', 'schnell-f16')  # checkpoints with a run of the VAE encoder
SIGMA = 0.618  # of the one transformer pass that is written stage by stage
NOISE_SEEDS = [0, 1, 42, 2**32 + 5, 2**63 - 1]
NOISE_COUNTS = [1, 2, 5, 15, 16, 17, 20, 31, 32, 47, 48, 100, 160]
NOISE_LARGE = [16 * 32 * 32, 16 * 128 * 128 + 7]  # only 32 values at either end are kept
SIGMA_SIZES = [(16, 16), (256, 256), (512, 768), (1024, 1024), (1360, 768), (2048, 2048)]
SIGMA_STEPS = [1, 2, 3, 4, 8, 20, 28, 50]
SCHEDULERS = dict(dev=dynamic_shift(), schnell=static_shift(1.0), static3=static_shift(3.0))


class Trace:
    """Named results of one run, batch dimension dropped."""

    def __init__(self):
        self.tensors = {}
        self.handles = []

    def put(self, name, tensor):
        assert name not in self.tensors, name
        self.tensors[name] = tensor.detach()[0].clone().contiguous()

    def hook(self, module, *names):
        """Keeps the outputs of a module's next calls: a tensor under the next of `names`, or a
        tuple under all of them."""
        left = list(names)

        def keep(_module, _inputs, output):
            if isinstance(output, tuple):
                for name, tensor in zip(names, output, strict=True):
                    self.put(name, tensor)
            else:
                self.put(left.pop(0), output)
        self.handles.append(module.register_forward_hook(keep))

    def unhook(self):
        for handle in self.handles:
            handle.remove()
        self.handles = []


def encode_text(pipe, spec, trace):
    clip = pipe.tokenizer(PROMPT, padding='max_length', truncation=True, return_tensors='pt',
                          max_length=pipe.tokenizer_max_length).input_ids
    t5 = pipe.tokenizer_2(PROMPT, padding='max_length', truncation=True, return_tensors='pt',
                          max_length=spec.t5_tokens).input_ids
    trace.put('clip.ids', clip.to(torch.int32))
    trace.put('t5.ids', t5.to(torch.int32))
    trace.hook(pipe.text_encoder.final_layer_norm, 'clip.hidden')
    for number, block in enumerate(pipe.text_encoder_2.encoder.block):
        block.register_forward_hook(
            lambda _module, _inputs, output, number=number:
            trace.put(f't5.layer{number}', output[0]))
    pooled = pipe.text_encoder(clip).pooler_output
    hidden = pipe.text_encoder_2(t5)[0]
    for block in pipe.text_encoder_2.encoder.block:
        block._forward_hooks.clear()
    trace.unhook()
    trace.put('clip.pooled', pooled)
    trace.put('t5.hidden', hidden)
    return hidden, pooled


def run_transformer(pipe, spec, latents, text, pooled, trace):
    """One pass at SIGMA, every stage kept."""
    net = pipe.transformer
    embed = net.time_text_embed
    sinusoids = ['transformer.time', 'transformer.guidance']
    trace.hook(embed.time_proj, *sinusoids[:2 if spec.transformer['guidance_embeds'] else 1])
    trace.hook(embed, 'transformer.temb')
    trace.hook(net.x_embedder, 'transformer.embedded.image')
    trace.hook(net.context_embedder, 'transformer.embedded.text')
    for kind, blocks in (('double', net.transformer_blocks),
                         ('single', net.single_transformer_blocks)):
        for number, block in enumerate(blocks):
            trace.hook(block, f'transformer.{kind}{number}.text',
                       f'transformer.{kind}{number}.image')
    trace.hook(net.norm_out, 'transformer.norm_out')
    rows, columns = spec.height // 16, spec.width // 16
    ids = pipe._prepare_latent_image_ids(1, rows, columns, 'cpu', text.dtype)
    guidance = None
    if spec.transformer['guidance_embeds']:
        guidance = torch.full([1], spec.guidance, dtype=torch.float32)
    velocity = net(hidden_states=latents, encoder_hidden_states=text, pooled_projections=pooled,
                   timestep=torch.tensor([SIGMA], dtype=text.dtype), img_ids=ids,
                   txt_ids=torch.zeros(text.shape[1], 3, dtype=text.dtype), guidance=guidance,
                   return_dict=False)[0]
    trace.unhook()
    trace.put('transformer.velocity', velocity)


def sample(pipe, spec, noise, steps, trace, **options):
    """The pipeline itself from a prompt; keeps sigmas and the latents after every step."""
    name = options.pop('name', f'euler{steps}')

    def keep(_pipe, step, _timestep, values):
        trace.put(f'{name}.step{step + 1}', values['latents'])
        return values
    tokens = pipe(PROMPT, width=spec.width, height=spec.height, num_inference_steps=steps,
                  guidance_scale=spec.guidance, latents=noise, max_sequence_length=spec.t5_tokens,
                  output_type='latent', callback_on_step_end=keep, **options).images
    if not options:
        trace.put(f'{name}.sigmas', pipe.scheduler.sigmas[None])
    return tokens


def decode(pipe, name, latents, trace):
    """VAE decoder for unpacked latents [1, C, h, w], then the picture in 8 bits."""
    z = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    trace.put(f'{name}.latents', latents)
    trace.put(f'{name}.z', z)
    trace.hook(pipe.vae.decoder.mid_block, f'{name}.mid')
    rgb = pipe.vae.decode(z, return_dict=False)[0]
    trace.unhook()
    trace.put(f'{name}.rgb', rgb)
    picture = pipe.image_processor.postprocess(rgb, output_type='pil')[0]
    trace.put(f'{name}.rgb8', torch.from_numpy(np.array(picture))[None])


def check_loaded(pipe, folder):
    """Every stored tensor must have reached its module: a name not understood is only a warning."""
    for path in glob.glob(f'{folder}/*/*.safetensors'):
        module = getattr(pipe, path.split('/')[-2])
        loaded = {name.removeprefix('text_model.'): tensor
                  for name, tensor in module.state_dict().items()}
        for name, tensor in load_file(path).items():
            name = name.removeprefix('text_model.')
            if not name.endswith('position_ids'):
                assert torch.equal(loaded[name], tensor.to(loaded[name].dtype)), f'{path}: {name}'


def trace_checkpoint(spec, folder, dtype):
    """All stages of one checkpoint computed in `dtype` from the stored weights."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=dtype).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    check_loaded(pipe, folder)
    trace = Trace()
    channels = pipe.vae.config.latent_channels

    def noise(seed, rows, columns):
        generator = torch.Generator('cpu').manual_seed(seed)
        return torch.randn(1, channels, rows, columns, generator=generator).to(dtype)

    rows, columns = spec.height // 8, spec.width // 8
    start = noise(spec.seed, rows, columns)
    tokens = pipe._pack_latents(start, 1, channels, rows, columns)
    trace.put('noise.latents', start)
    trace.put('noise.tokens', tokens)
    text, pooled = encode_text(pipe, spec, trace)
    run_transformer(pipe, spec, tokens, text, pooled, trace)
    sample(pipe, spec, tokens, 3, trace)
    final = sample(pipe, spec, tokens, 4, trace)
    if spec.name in GUIDED_TWICE:
        sample(pipe, spec, tokens, 3, trace, name='cfg', negative_prompt=NEGATIVE,
               true_cfg_scale=3.0)
    decode(pipe, 'final', pipe._unpack_latents(final, spec.height, spec.width, 8), trace)
    decode(pipe, 'square', noise(spec.seed + 1, 4, 4), trace)
    if spec.name in ENCODED:
        picture = noise(spec.seed + 2, 8, 8)[:, :3].repeat_interleave(5, 3).repeat_interleave(4, 2)
        trace.put('encode.image', picture)
        trace.put('encode.moments', pipe.vae.encode(picture).latent_dist.parameters)
    return trace.tensors


def relative_error(value, exact):
    exact = exact.double()
    return float((value.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def describe(spec, tensors, exact):
    """The manifest: inputs, and for each tensor how far fp32 itself is from fp64."""
    listing = {}
    for name, tensor in tensors.items():
        listing[name] = dict(shape=list(tensor.shape), type=str(tensor.dtype)[6:])
        if tensor.dtype == torch.float32:
            listing[name]['fp32_error'] = float(f'{relative_error(tensor, exact[name]):.1e}')
            listing[name]['rms'] = float(f'{tensor.double().pow(2).mean().sqrt():.3g}')
    return dict(checkpoint=spec.name, prompt=PROMPT, negative_prompt=NEGATIVE, cfg_scale=3.0,
                width=spec.width, height=spec.height, seed=spec.seed, guidance=spec.guidance,
                sigma=SIGMA, t5_tokens=spec.t5_tokens, tensors=listing)


def write_stages(out):
    for spec in CHECKPOINTS:
        folder = f'{out}/{spec.name}'
        write_checkpoint(spec, folder, f'{out}/tokenizers')
        tensors = trace_checkpoint(spec, folder, torch.float32)
        exact = trace_checkpoint(spec, folder, torch.float64)
        save_file(tensors, f'{out}/{spec.name}.safetensors')
        manifest = describe(spec, tensors, exact)
        write_json(f'{out}/{spec.name}.json', manifest)
        worst = max((t.get('fp32_error', 0), n) for n, t in manifest['tensors'].items())
        print(f'{spec.name}: {len(tensors)} tensors, worst fp32 error {worst}')


def write_bf16(out):
    """Adds to the manifests how far diffusers itself is from its fp32 when it computes in bf16."""
    for spec in CHECKPOINTS:
        reference = load_file(f'{out}/{spec.name}.safetensors')
        with open(f'{out}/{spec.name}.json') as file:
            manifest = json.load(file)
        coarse = trace_checkpoint(spec, f'{out}/{spec.name}', torch.bfloat16)
        for name, entry in manifest['tensors'].items():
            if entry['type'] != 'int32':
                entry['bf16_error'] = float(f'{relative_error(coarse[name], reference[name]):.2e}')
        write_json(f'{out}/{spec.name}.json', manifest)
        print(f'{spec.name}: final latents in bf16 {manifest["tensors"]["final.latents"]}')


def write_sigmas(out):
    """Sigmas as FluxPipeline asks its scheduler for them."""
    tensors, shifts = {}, {}
    for kind, config in SCHEDULERS.items():
        scheduler = FlowMatchEulerDiscreteScheduler(**config)
        for width, height in SIGMA_SIZES:
            mu = calculate_shift((width // 16) * (height // 16))
            shifts[f'{width}x{height}'] = mu
            for steps in SIGMA_STEPS:
                retrieve_timesteps(scheduler, steps, 'cpu', mu=mu,
                                   sigmas=np.linspace(1.0, 1 / steps, steps))
                tensors[f'{kind}.{width}x{height}.{steps}'] = scheduler.sigmas.clone()
    save_file(tensors, f'{out}/sigmas.safetensors')
    write_json(f'{out}/sigmas.json', dict(schedulers=SCHEDULERS, mu=shifts, steps=SIGMA_STEPS))


def write_noise(out):
    """torch.randn of n values by a freshly seeded CPU generator."""
    def draw(seed, count):
        return torch.randn(count, generator=torch.Generator('cpu').manual_seed(seed))
    tensors = {}
    for seed in NOISE_SEEDS:
        for count in NOISE_COUNTS:
            tensors[f'seed{seed}.n{count}'] = draw(seed, count)
        for count in NOISE_LARGE:
            values = draw(seed, count)
            tensors[f'seed{seed}.n{count}.first'] = values[:32].clone()
            tensors[f'seed{seed}.n{count}.last'] = values[-32:].clone()
    save_file(tensors, f'{out}/noise.safetensors')
    write_json(f'{out}/noise.json', dict(seeds=NOISE_SEEDS, whole=NOISE_COUNTS, ends=NOISE_LARGE))


def main():
    only_bf16 = '--bf16' in sys.argv[1:]
    folders = [argument for argument in sys.argv[1:] if argument != '--bf16']
    out = os.path.abspath(folders[0] if folders else f'{HERE}/data')
    torch.set_grad_enabled(False)
    if only_bf16:
        write_bf16(out)
        return
    shutil.rmtree(f'{out}/tokenizers', ignore_errors=True)
    for tokenizer in ('tokenizer', 'tokenizer_2'):
        shutil.copytree(f'{MINI}/{tokenizer}', f'{out}/tokenizers/{tokenizer}')
    write_stages(out)
    write_bf16(out)
    write_sigmas(out)
    write_noise(out)
    bytes_ = sum(os.lstat(f'{folder}/{file}').st_size
                 for folder, _, files in os.walk(out) for file in files)
    print(f'{bytes_ / 1e6:.2f} MB in {out}')


if __name__ == '__main__':
    main()
