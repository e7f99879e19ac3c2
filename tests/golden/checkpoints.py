# SPDX-License-Identifier: MIT
"""Tiny checkpoints of random weights in the diffusers layout: what they are and how they are made.

Every size is odd on purpose: nothing here equals FLUX.1-dev's, so a number that is hard-coded
somewhere shows. Weights are scaled so that activations stay near 1, and nothing is zero that a
real model would have trained away from zero (modulations, biases, gates, the last projections).
"""
import json
import math
import os
import shutil
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CLIP_VOCABULARY, T5_VOCABULARY, CLIP_EOS = 704, 640, 703


def dynamic_shift(**other):
    """FLUX.1-dev's scheduler: the shift grows with the number of image tokens."""
    return dict(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15,
                base_image_seq_len=256, max_image_seq_len=4096) | other


def static_shift(shift):
    """FLUX.1-schnell's scheduler with shift 1.0."""
    return dict(use_dynamic_shifting=False, shift=shift)


CHECKPOINTS = [
    # One head, everything F32, one file a component.
    SimpleNamespace(
        name='single-f32', seed=101, types=dict(default=F32), shard_bytes=None,
        transformer=dict(num_attention_heads=1, attention_head_dim=16, axes_dims_rope=(4, 6, 6),
                         num_layers=1, num_single_layers=2, guidance_embeds=True),
        t5=dict(d_model=24, num_heads=2, d_kv=12, d_ff=40, num_layers=2), t5_tokens=16,
        clip=dict(hidden_size=20, num_attention_heads=2, intermediate_size=56,
                  num_hidden_layers=1, max_position_embeddings=77, eos_token_id=2),
        clip_prefix='', position_ids=False,
        vae=dict(block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=4,
                 scaling_factor=0.83, shift_factor=-0.05),
        scheduler=dynamic_shift(),
        width=48, height=32, guidance=3.5),
    # Two heads of 12, BF16, the transformer and T5 in shards with an index; T5's heads are narrower
    # together than its stream.
    SimpleNamespace(
        name='sharded-bf16', seed=202, types=dict(default=BF16), shard_bytes=40 << 10,
        transformer=dict(num_attention_heads=2, attention_head_dim=12, axes_dims_rope=(2, 4, 6),
                         num_layers=3, num_single_layers=1, guidance_embeds=True),
        t5=dict(d_model=32, num_heads=3, d_kv=8, d_ff=56, num_layers=3), t5_tokens=24,
        clip=dict(hidden_size=32, num_attention_heads=4, intermediate_size=72,
                  num_hidden_layers=2, max_position_embeddings=77, eos_token_id=2),
        clip_prefix='text_model.', position_ids=False,
        vae=dict(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=8,
                 scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=dynamic_shift(base_shift=0.4, max_shift=1.3, base_image_seq_len=4,
                                max_image_seq_len=64),
        width=32, height=80, guidance=2.0),
    # Three heads of 8, F16, no guidance, no shift, as schnell; two resnets a VAE block; CLIP with
    # the end token named in its config and fewer places.
    SimpleNamespace(
        name='schnell-f16', seed=303, types=dict(default=F16), shard_bytes=None,
        transformer=dict(num_attention_heads=3, attention_head_dim=8, axes_dims_rope=(4, 2, 2),
                         num_layers=1, num_single_layers=3, guidance_embeds=False),
        t5=dict(d_model=40, num_heads=4, d_kv=10, d_ff=48, num_layers=1), t5_tokens=33,
        clip=dict(hidden_size=24, num_attention_heads=3, intermediate_size=40,
                  num_hidden_layers=3, max_position_embeddings=32, eos_token_id=CLIP_EOS),
        clip_prefix='text_model.', position_ids=True,
        vae=dict(block_out_channels=(8, 8, 12, 12), layers_per_block=2, norm_num_groups=4,
                 scaling_factor=0.5, shift_factor=0.0),
        scheduler=static_shift(1.0),
        width=64, height=48, guidance=0.0),
    # Three heads of 8; matrices and vectors of different types in one file, shards, a short T5
    # bucket table, 8 latent channels.
    SimpleNamespace(
        name='mixed', seed=404, types=dict(default=BF16, vectors=F32, wo=F32, shared=F16),
        shard_bytes=36 << 10,
        transformer=dict(num_attention_heads=3, attention_head_dim=8, axes_dims_rope=(2, 2, 4),
                         num_layers=2, num_single_layers=2, guidance_embeds=False,
                         in_channels=32),
        t5=dict(d_model=24, num_heads=2, d_kv=16, d_ff=64, num_layers=2,
                relative_attention_num_buckets=8, relative_attention_max_distance=20),
        t5_tokens=40,
        clip=dict(hidden_size=16, num_attention_heads=1, intermediate_size=64,
                  num_hidden_layers=2, max_position_embeddings=48, eos_token_id=2),
        clip_prefix='', position_ids=False,
        vae=dict(block_out_channels=(6, 6, 12, 12), layers_per_block=1, norm_num_groups=6,
                 latent_channels=8, scaling_factor=1.2, shift_factor=0.3),
        scheduler=static_shift(3.0),
        width=80, height=16, guidance=0.0),
]


def new_modules(spec):
    """The four networks of a checkpoint with diffusers' own initial weights."""
    t5 = T5Config(vocab_size=T5_VOCABULARY, feed_forward_proj='gated-gelu', dropout_rate=0.0,
                  pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **spec.t5)
    clip = CLIPTextConfig(vocab_size=CLIP_VOCABULARY, hidden_act='quick_gelu', bos_token_id=0,
                          pad_token_id=1, projection_dim=spec.clip['hidden_size'], **spec.clip)
    vae = dict(latent_channels=16) | spec.vae
    return dict(
        text_encoder=CLIPTextModel(clip),
        text_encoder_2=T5EncoderModel(t5),
        transformer=FluxTransformer2DModel(**(dict(
            in_channels=64, joint_attention_dim=spec.t5['d_model'],
            pooled_projection_dim=spec.clip['hidden_size']) | spec.transformer)),
        vae=AutoencoderKL(
            in_channels=3, out_channels=3, down_block_types=('DownEncoderBlock2D',) * 4,
            up_block_types=('UpDecoderBlock2D',) * 4, act_fn='silu', sample_size=64,
            use_quant_conv=False, use_post_quant_conv=False, force_upcast=False, **vae))


def spread(name, parameter, t5):
    """Mean and standard deviation that a parameter's values are drawn with."""
    if parameter.dim() == 1:
        is_norm_weight = name.endswith('.weight')
        return (1.0, 0.2) if is_norm_weight else (0.0, 0.2)
    fan_in = math.prod(parameter.shape[1:])
    if 'relative_attention_bias' in name:
        return 0.0, 0.7
    if 'SelfAttention.q' in name:  # T5 doesn't divide by the root of the head's width
        return 0.0, 1 / math.sqrt(fan_in * t5['d_kv'])
    if 'embedding' in name or 'shared' in name or 'embed_tokens' in name:
        return 0.0, 0.7 if 'position' not in name else 0.3
    if 'norm' in name:  # modulations: shifts, scales and gates of about 0.5
        return 0.0, 0.7 / math.sqrt(fan_in)
    if name.startswith('decoder.conv_out'):  # most of the picture inside -1 … 1, some outside
        return 0.0, 0.45 / math.sqrt(fan_in)
    return 0.0, 1.2 / math.sqrt(fan_in)


def randomise(module, t5, generator):
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            mean, deviation = spread(name, parameter, t5)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation + mean)


def stored_type(spec, name, tensor):
    types = spec.types
    if tensor.dim() == 1 and 'vectors' in types:
        return types['vectors']
    for part in ('wo', 'shared'):
        if f'{part}.weight' in name and part in types:
            return types[part]
    return types['default']


def stored_tensors(spec, component, module):
    """What goes into a component's files: names as published checkpoints have them."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        if name == 'encoder.embed_tokens.weight':  # T5's: the same tensor as shared.weight
            continue
        if component == 'text_encoder':
            name = spec.clip_prefix + name.removeprefix('text_model.')
        tensors[name] = tensor.to(stored_type(spec, name, tensor)).contiguous()
    if component == 'text_encoder' and spec.position_ids:
        places = torch.arange(spec.clip['max_position_embeddings'])[None]
        tensors[spec.clip_prefix + 'embeddings.position_ids'] = places
    return tensors


def write_weights(folder, stem, tensors, shard_bytes):
    """One file, or shards and their index as diffusers and transformers write them."""
    if shard_bytes is None:
        save_file(tensors, f'{folder}/{stem}.safetensors', metadata={'format': 'pt'})
        return
    shards, used = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f'{stem}-{number:05}-of-{len(shards):05}.safetensors'
        save_file(shard, f'{folder}/{file}', metadata={'format': 'pt'})
        places |= {name: file for name in shard}
    index = dict(metadata=dict(total_size=sum(t.nbytes for t in tensors.values())),
                 weight_map=dict(sorted(places.items())))
    write_json(f'{folder}/{stem}.safetensors.index.json', index)


def write_json(path, value):
    with open(path, 'w') as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write('\n')


def write_config(component, module, folder):
    if component.startswith('text_encoder'):
        module.config.architectures = [type(module).__name__]
        module.config.save_pretrained(folder)
    else:
        module.save_config(folder)


def write_tokenizers(spec, folder, shared):
    """Folders of our own (each has its own maximum) with links to the vocabularies."""
    files = dict(tokenizer=['vocab.json', 'merges.txt'], tokenizer_2=['spiece.model'])
    lengths = dict(tokenizer=spec.clip['max_position_embeddings'], tokenizer_2=spec.t5_tokens)
    for tokenizer, names in files.items():
        os.makedirs(f'{folder}/{tokenizer}')
        for name in names:
            os.symlink(f'../../tokenizers/{tokenizer}/{name}', f'{folder}/{tokenizer}/{name}')
        with open(f'{shared}/{tokenizer}/tokenizer_config.json') as file:
            config = json.load(file)
        config['model_max_length'] = lengths[tokenizer]
        write_json(f'{folder}/{tokenizer}/tokenizer_config.json', config)


def write_checkpoint(spec, folder, shared):
    """Makes the checkpoint `spec` in `folder`; `shared` holds the tokenizers it links to."""
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator('cpu').manual_seed(spec.seed)
    torch.manual_seed(spec.seed)
    for component, module in new_modules(spec).items():
        path = f'{folder}/{component}'
        os.makedirs(path)
        randomise(module, spec.t5, generator)
        stem = 'model' if component.startswith('text') else 'diffusion_pytorch_model'
        sharded = component in ('transformer', 'text_encoder_2')
        write_weights(path, stem, stored_tensors(spec, component, module),
                      spec.shard_bytes if sharded else None)
        write_config(component, module, path)
    FlowMatchEulerDiscreteScheduler(**spec.scheduler).save_config(f'{folder}/scheduler')
    write_tokenizers(spec, folder, shared)
    write_json(f'{folder}/model_index.json', dict(
        _class_name='FluxPipeline',
        scheduler=['diffusers', 'FlowMatchEulerDiscreteScheduler'],
        text_encoder=['transformers', 'CLIPTextModel'],
        text_encoder_2=['transformers', 'T5EncoderModel'],
        tokenizer=['transformers', 'CLIPTokenizer'],
        tokenizer_2=['transformers', 'T5TokenizerFast'],
        transformer=['diffusers', 'FluxTransformer2DModel'], vae=['diffusers', 'AutoencoderKL']))
