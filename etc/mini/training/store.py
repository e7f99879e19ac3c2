# SPDX-License-Identifier: MIT
"""Checkpoints in the diffusers layout: etc/mini as it is published, and what training goes on from.

usage: store.py FOLDER     compares model.py with diffusers and transformers on a checkpoint
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

import shapes

SHARD_BYTES = 8_000_000
SCHEDULER = dict(
    _class_name='FlowMatchEulerDiscreteScheduler', num_train_timesteps=1000, shift=3.0,
    use_dynamic_shifting=True, base_shift=.5, max_shift=1.15, base_image_seq_len=256,
    max_image_seq_len=4096)
INDEX = dict(
    _class_name='FluxPipeline', scheduler=['diffusers', 'FlowMatchEulerDiscreteScheduler'],
    text_encoder=['transformers', 'CLIPTextModel'],
    text_encoder_2=['transformers', 'T5EncoderModel'],
    tokenizer=['transformers', 'CLIPTokenizer'], tokenizer_2=['transformers', 'T5TokenizerFast'],
    transformer=['diffusers', 'FluxTransformer2DModel'], vae=['diffusers', 'AutoencoderKL'])
STATE = 'training.json'


def _write_json(path, value):
    with open(path, 'w') as file:
        json.dump(value, file, indent=1)
        file.write('\n')


def _stem(part):
    return 'model' if part.startswith('text') else 'diffusion_pytorch_model'


def _save_part(folder, part, config, weights):
    os.makedirs(f'{folder}/{part}')
    _write_json(f'{folder}/{part}/config.json', config)
    tensors = {name: tensor.to(torch.bfloat16).contiguous().cpu()
               for name, tensor in weights.items()}
    stem, metadata = _stem(part), {'format': 'pt'}
    if part != 'transformer':
        save_file(tensors, f'{folder}/{part}/{stem}.safetensors', metadata)
        return
    shards, used = [{}], 0
    for name, tensor in tensors.items():
        if used + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f'{stem}-{number:05}-of-{len(shards):05}.safetensors'
        save_file(shard, f'{folder}/{part}/{file}', metadata)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(f'{folder}/{part}/{stem}.safetensors.index.json',
                dict(metadata=dict(total_size=total), weight_map=dict(sorted(places.items()))))


OWN = ('scheduler', 'model_index.json', STATE, *shapes.CONFIGS, 'tokenizer', 'tokenizer_2')


def save(folder, tokenizers, parts, state):
    """Replaces a checkpoint, and nothing else in its folder: `parts` is {part: (config, weights)},
    `tokenizers` a folder that has them, `state` what training.json remembers."""
    new = f'{folder}.new'
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(f'{new}/scheduler')
    for part, (config, weights) in parts.items():
        _save_part(new, part, config, weights)
    for name in ('tokenizer', 'tokenizer_2'):
        shutil.copytree(f'{tokenizers}/{name}', f'{new}/{name}')
    _write_json(f'{new}/scheduler/scheduler_config.json', SCHEDULER)
    _write_json(f'{new}/model_index.json', INDEX)
    _write_json(f'{new}/{STATE}', state)
    os.makedirs(folder, exist_ok=True)
    for name in OWN:
        old = f'{folder}/{name}'
        if os.path.isdir(old):
            shutil.rmtree(old)
        os.rename(f'{new}/{name}', old)
    os.rmdir(new)


def load_part(folder, part):
    """A part's weights in fp32 and its configuration."""
    with open(f'{folder}/{part}/config.json') as file:
        config = json.load(file)
    weights = {}
    for name in sorted(os.listdir(f'{folder}/{part}')):
        if name.endswith('.safetensors'):
            weights |= load_file(f'{folder}/{part}/{name}')
    prefix = 'text_model.' if part == 'text_encoder' else ''
    return {name if name.startswith(prefix) else prefix + name: tensor.float()
            for name, tensor in weights.items()}, config


def load_state(folder):
    """What training.json remembers; None if the model there is of another training."""
    if not os.path.exists(f'{folder}/{STATE}'):
        return None
    with open(f'{folder}/{STATE}') as file:
        return json.load(file)


def _distance(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def compare(folder, prompt='a small red circle to the left of a blue star at sunset'):
    """{what: relative L2 distance} between model.py and the libraries that it follows."""
    import diffusers
    import model
    import vocabulary
    pipe = diffusers.FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    words = vocabulary.Tokenizers(folder)
    length = pipe.tokenizer_2.model_max_length
    parts = {part: load_part(folder, part) for part in shapes.CONFIGS}
    generator = torch.Generator().manual_seed(1)
    picture = torch.rand(1, 3, 64, 96, generator=generator) * 2 - 1
    x = torch.randn(1, 24, 64, generator=generator)
    sigma, guidance = torch.tensor([.7]), torch.tensor([3.5])
    with torch.no_grad():
        text, pooled, text_ids = pipe.encode_prompt(prompt, prompt, max_sequence_length=length)
        ours_text = model.t5(*parts['text_encoder_2'], torch.tensor([words.t5(prompt)]))
        ours_pooled = model.clip(*parts['text_encoder'], torch.tensor([words.clip(prompt)]))
        ids = pipe._prepare_latent_image_ids(1, 4, 6, 'cpu', torch.float32)
        velocity = pipe.transformer(
            hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=sigma,
            guidance=guidance, img_ids=ids, txt_ids=text_ids, return_dict=False)[0]
        mean = pipe.vae.encode(picture).latent_dist.mode()
        again = pipe.vae.decode(mean).sample
        return {
            'T5': _distance(ours_text, text), 'CLIP': _distance(ours_pooled, pooled),
            'transformer': _distance(model.flux(*parts['transformer'], x, text, pooled, sigma,
                                                guidance, (96, 64)), velocity),
            'encoder': _distance(model.encode(*parts['vae'], picture)[0], mean),
            'decoder': _distance(model.decode(*parts['vae'], mean), again)}


if __name__ == '__main__':
    for what, distance in compare(sys.argv[1]).items():
        print(f'{what}: {distance:.1e}')
