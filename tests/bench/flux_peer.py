# SPDX-License-Identifier: MIT
"""diffusers' side of the benchmark at full size: one way of running it, or the card's ceilings.

usage: flux_peer.py MODE --model FOLDER [--device cuda|cpu] [--size WxH] [--steps N] [--runs N]
                    [--latents FILE] [--dtype bfloat16|float32]

MODE: eager, compiled (the transformer's repeated blocks), group (block groups of the transformer
offloaded over a stream), sequential (every layer offloaded), latents (the final latents to --latents
as fp32, from the prompt, size and seed that bench_picture uses), ceilings (what the card can do:
linear layers and attention of FLUX.1's step, and the link).

Prints one line of JSON: text_s, step_s (the median of all but the first two steps), decode_s,
peak_bytes (reserved by PyTorch), device_used_bytes (by everybody on the card).
"""
import argparse
import contextlib
import json
import statistics
import sys
import time

PROMPT = 'a large red circle on a white background'
GUIDANCE, SEED = 3.5, 3
T5_TOKENS, WARM_STEPS = 512, 2


def read_options():
    parser = argparse.ArgumentParser()
    parser.add_argument('mode', choices=['eager', 'compiled', 'group', 'sequential', 'latents',
                                         'ceilings'])
    parser.add_argument('--model', required=True)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--size', default='1024x1024')
    parser.add_argument('--steps', type=int, default=8)
    parser.add_argument('--runs', type=int, default=2)
    parser.add_argument('--dtype', default='bfloat16')
    parser.add_argument('--latents')
    options = parser.parse_args()
    options.width, options.height = map(int, options.size.split('x'))
    return options


class Clock:
    """Wall time with the device at rest."""

    def __init__(self, torch, device):
        self.wait = torch.cuda.synchronize if device == 'cuda' else lambda: None

    def __call__(self):
        self.wait()
        return time.perf_counter()


def device_used(torch, device):
    if device != 'cuda':
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


# ---- the pipeline ----

def load(torch, options):
    """The pipeline, placed as the mode says."""
    from diffusers import FluxPipeline
    dtype = getattr(torch, options.dtype)
    pipe = FluxPipeline.from_pretrained(options.model, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if options.mode == 'sequential':
        pipe.enable_sequential_cpu_offload()
    elif options.mode == 'group':
        offload = dict(onload_device=torch.device(options.device),
                       offload_device=torch.device('cpu'), offload_type='block_level',
                       num_blocks_per_group=1, use_stream=True)
        pipe.transformer.enable_group_offload(**offload)
        pipe.text_encoder_2.to('cpu')
        for part in (pipe.text_encoder, pipe.vae):
            part.to(options.device)
    else:
        pipe.to(options.device)
    if options.mode == 'compiled':
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
    return pipe


def encode(torch, pipe, options):
    """Prompt embeddings. Group offload leaves T5 on the CPU between prompts: it is moved in and out,
    which is not counted."""
    moved = options.mode == 'group'
    if moved:
        pipe.text_encoder_2.to(options.device)
    length = min(pipe.tokenizer_2.model_max_length, T5_TOKENS)
    clock = Clock(torch, options.device)
    times = []
    for _ in range(options.runs + 1):
        start = clock()
        embeddings = pipe.encode_prompt(PROMPT, prompt_2=None, max_sequence_length=length)
        times.append(clock() - start)
    if moved:
        pipe.text_encoder_2.to('cpu')
        torch.cuda.empty_cache()
    return embeddings, min(times)


def noise(torch, pipe, options):
    """The same in every precision; the pipeline itself would draw other numbers in bf16."""
    channels = pipe.transformer.config.in_channels // 4
    height, width = options.height // 8, options.width // 8
    drawn = torch.randn(1, channels, height, width,
                        generator=torch.Generator('cpu').manual_seed(SEED))
    return pipe._pack_latents(drawn, 1, channels, height, width)


def denoise(torch, pipe, options, embeddings):
    """Final latents, and the time of each step."""
    clock, marks = Clock(torch, options.device), []

    def mark(_pipe, _step, _timestep, state):
        marks.append(clock())
        return state
    latents = pipe(prompt_embeds=embeddings[0], pooled_prompt_embeds=embeddings[1],
                   width=options.width, height=options.height, num_inference_steps=options.steps,
                   guidance_scale=GUIDANCE, output_type='latent', callback_on_step_end=mark,
                   latents=noise(torch, pipe, options).to(options.device, pipe.dtype)).images
    return latents, [b - a for a, b in zip(marks, marks[1:])]


def decode(torch, pipe, options, latents):
    clock, times = Clock(torch, options.device), []
    z = pipe._unpack_latents(latents, options.height, options.width, pipe.vae_scale_factor)
    z = z / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    for _ in range(options.runs + 1):
        start = clock()
        pipe.vae.decode(z, return_dict=False)
        times.append(clock() - start)
    return min(times)


def run_pipeline(torch, options):
    start = time.perf_counter()
    pipe = load(torch, options)
    loaded = time.perf_counter() - start
    embeddings, text_s = encode(torch, pipe, options)
    if options.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    steps = []
    for _ in range(options.runs):
        latents, times = denoise(torch, pipe, options, embeddings)
        steps += times[WARM_STEPS - 1:]
    decode_s = decode(torch, pipe, options, latents)
    peak = torch.cuda.max_memory_reserved() if options.device == 'cuda' else 0
    return dict(load_s=loaded, text_s=text_s, step_s=statistics.median(steps), decode_s=decode_s,
                peak_bytes=peak, device_used_bytes=device_used(torch, options.device))


def write_latents(torch, options):
    pipe = load(torch, options)
    embeddings, _ = encode(torch, pipe, options)
    latents, _ = denoise(torch, pipe, options, embeddings)
    latents[0].float().cpu().numpy().tofile(options.latents)
    return dict(count=latents.numel(), rms=float(latents.float().pow(2).mean().sqrt()))


# ---- ceilings ----

def timed(torch, options, action, repeat=20):
    """Median seconds of an action."""
    clock, times = Clock(torch, options.device), []
    for _ in range(3):
        action()
    for _ in range(repeat):
        start = clock()
        action()
        times.append(clock() - start)
    return statistics.median(times)


def read_config(options, name):
    with open(f'{options.model}/{name}/config.json') as file:
        return json.load(file)


def linear_shapes(config, image, text):
    """(rows, in, out, how many in a step) of the step's linear layers."""
    width = config['num_attention_heads'] * config['attention_head_dim']
    doubles, singles = config['num_layers'], config['num_single_layers']
    shapes = []
    for rows in (image, text):
        shapes += [(rows, width, 3 * width, doubles), (rows, width, width, doubles),
                   (rows, width, 4 * width, doubles), (rows, 4 * width, width, doubles)]
    rows = image + text
    return shapes + [(rows, width, 3 * width, singles), (rows, width, 4 * width, singles),
                     (rows, 5 * width, width, singles)]


def ceilings(torch, options):
    """Each operation alone and at rest before; row_s: all of a step in a row, a card at its power."""
    config = read_config(options, 'transformer')
    dtype = getattr(torch, options.dtype)
    image = options.width * options.height // 256
    heads, size = config['num_attention_heads'], config['attention_head_dim']
    blocks = config['num_layers'] + config['num_single_layers']
    tokens = image + T5_TOKENS
    linear_s, actions = 0, []
    with torch.inference_mode():
        for rows, inner, outer, count in linear_shapes(config, image, T5_TOKENS):
            x = torch.randn(rows, inner, dtype=dtype, device=options.device)
            weight = torch.randn(outer, inner, dtype=dtype, device=options.device) * 0.02
            actions.append((count, lambda x=x, weight=weight: torch.nn.functional.linear(
                x, weight)))
            linear_s += count * timed(torch, options, actions[-1][1])
        q, k, v = (torch.randn(1, heads, tokens, size, dtype=dtype, device=options.device)
                   for _ in range(3))
        attention_s, attend = fastest_attention(torch, options, q, k, v)
        actions.append((blocks, attend))

        def row():
            for count, action in actions:
                for _ in range(count):
                    action()
        result = dict(linear_s=linear_s, attention_s=attention_s * blocks,
                      attention_tflops=4e-12 * heads * tokens**2 * size / attention_s,
                      row_s=timed(torch, options, row))
        if options.device == 'cuda':
            result |= link(torch, options)
    return result


def fastest_attention(torch, options, q, k, v):
    """Of the ways that PyTorch has, as (seconds, action)."""
    attend = torch.nn.functional.scaled_dot_product_attention
    if options.device != 'cuda':
        return timed(torch, options, lambda: attend(q, k, v)), lambda: attend(q, k, v)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    ways = []
    for way in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        def action(way=way):
            with sdpa_kernel(way):
                attend(q, k, v)
        with contextlib.suppress(RuntimeError):
            ways.append((timed(torch, options, action), action))
    return min(ways, key=lambda way: way[0])


def link(torch, options):
    pinned = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(1 << 30, dtype=torch.uint8, device=options.device)
    other = torch.empty_like(there)
    return dict(
        link_bytes_s=(1 << 30) / timed(torch, options,
                                       lambda: there.copy_(pinned, non_blocking=True), 5),
        memory_bytes_s=(2 << 30) / timed(torch, options, lambda: other.copy_(there)))


def main():
    options = read_options()
    import torch
    torch.set_grad_enabled(False)
    if options.mode == 'ceilings':
        result = ceilings(torch, options)
    elif options.mode == 'latents':
        result = write_latents(torch, options)
    else:
        result = run_pipeline(torch, options)
    device = torch.cuda.get_device_name() if options.device == 'cuda' else 'cpu'
    print(json.dumps(dict(mode=options.mode, device=device, torch=torch.__version__, **result)))


if __name__ == '__main__':
    sys.exit(main())
