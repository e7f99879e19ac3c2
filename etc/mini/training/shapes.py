# SPDX-License-Identifier: MIT
"""What the model is made of: configurations, and every weight's shape and first value."""
import math

import torch

DIFFUSERS, TRANSFORMERS = '0.35.0', '4.56.0'  # that the configurations are written for

VAE = dict(
    _class_name='AutoencoderKL', _diffusers_version=DIFFUSERS, act_fn='silu', in_channels=3,
    out_channels=3, latent_channels=16, block_out_channels=[32, 64, 96, 96], layers_per_block=1,
    norm_num_groups=32, mid_block_add_attention=True, force_upcast=False, sample_size=256,
    scaling_factor=1., shift_factor=0., use_quant_conv=False, use_post_quant_conv=False,
    down_block_types=['DownEncoderBlock2D'] * 4, up_block_types=['UpDecoderBlock2D'] * 4)
T5 = dict(
    architectures=['T5EncoderModel'], model_type='t5', transformers_version=TRANSFORMERS,
    vocab_size=256, d_model=192, d_kv=64, num_heads=3, d_ff=384, num_layers=3,
    num_decoder_layers=3, feed_forward_proj='gated-gelu', dense_act_fn='gelu_new',
    is_gated_act=True,
    layer_norm_epsilon=1e-6, relative_attention_num_buckets=32,
    relative_attention_max_distance=128, dropout_rate=0., initializer_factor=1.,
    pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, is_encoder_decoder=False,
    use_cache=False, tie_word_embeddings=False, torch_dtype='bfloat16')
CLIP = dict(
    architectures=['CLIPTextModel'], model_type='clip_text_model',
    transformers_version=TRANSFORMERS,
    vocab_size=832, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=77, hidden_act='quick_gelu',
    layer_norm_eps=1e-5, attention_dropout=0., initializer_factor=1., initializer_range=.02,
    projection_dim=128, bos_token_id=0, pad_token_id=1, eos_token_id=2, torch_dtype='bfloat16')
FLUX = dict(
    _class_name='FluxTransformer2DModel', _diffusers_version=DIFFUSERS, patch_size=1,
    in_channels=64, out_channels=None, attention_head_dim=128, num_attention_heads=2,
    num_layers=1, num_single_layers=5, joint_attention_dim=192, pooled_projection_dim=128,
    guidance_embeds=True, axes_dims_rope=[16, 56, 56])
CONFIGS = dict(vae=VAE, text_encoder=CLIP, text_encoder_2=T5, transformer=FLUX)
T5_TOKENS, CLIP_TOKENS = 64, 77


class Plan(dict):
    """{name: (shape, deviation)}; a deviation of None means ones."""

    def linear(self, name, inputs, outputs, bias=True, gain=1.):
        self[f'{name}.weight'] = ((outputs, inputs), gain / math.sqrt(inputs))
        if bias:
            self[f'{name}.bias'] = ((outputs,), 0.)

    def norm(self, name, width, bias=True):
        self[f'{name}.weight'] = ((width,), None)
        if bias:
            self[f'{name}.bias'] = ((width,), 0.)

    def conv(self, name, inputs, outputs, side=3, gain=1.):
        self[f'{name}.weight'] = ((outputs, inputs, side, side), gain / math.sqrt(inputs) / side)
        self[f'{name}.bias'] = ((outputs,), 0.)

    def resnet(self, name, inputs, outputs):
        self.norm(f'{name}.norm1', inputs)
        self.conv(f'{name}.conv1', inputs, outputs)
        self.norm(f'{name}.norm2', outputs)
        self.conv(f'{name}.conv2', outputs, outputs, gain=.3)
        if inputs != outputs:
            self.conv(f'{name}.conv_shortcut', inputs, outputs, side=1)

    def middle(self, name, width):
        self.resnet(f'{name}.resnets.0', width, width)
        self.norm(f'{name}.attentions.0.group_norm', width)
        for part in ('to_q', 'to_k', 'to_v', 'to_out.0'):
            self.linear(f'{name}.attentions.0.{part}', width, width,
                        gain=.1 if part == 'to_out.0' else 1)
        self.resnet(f'{name}.resnets.1', width, width)


def vae(config):
    plan, widths = Plan(), config['block_out_channels']
    plan.conv('encoder.conv_in', 3, widths[0])
    for level, width in enumerate(widths):
        block, before = f'encoder.down_blocks.{level}', widths[max(level - 1, 0)]
        for number in range(config['layers_per_block']):
            plan.resnet(f'{block}.resnets.{number}', width if number else before, width)
        if level < len(widths) - 1:
            plan.conv(f'{block}.downsamplers.0.conv', width, width)
    plan.middle('encoder.mid_block', widths[-1])
    plan.norm('encoder.conv_norm_out', widths[-1])
    plan.conv('encoder.conv_out', widths[-1], 2 * config['latent_channels'])
    plan.conv('decoder.conv_in', config['latent_channels'], widths[-1])
    plan.middle('decoder.mid_block', widths[-1])
    up = widths[::-1]
    for level, width in enumerate(up):
        block, before = f'decoder.up_blocks.{level}', up[max(level - 1, 0)]
        for number in range(config['layers_per_block'] + 1):
            plan.resnet(f'{block}.resnets.{number}', width if number else before, width)
        if level < len(widths) - 1:
            plan.conv(f'{block}.upsamplers.0.conv', width, width)
    plan.norm('decoder.conv_norm_out', widths[0])
    plan.conv('decoder.conv_out', widths[0], 3, gain=.5)
    return plan


def t5(config):
    plan, width, inner = Plan(), config['d_model'], config['num_heads'] * config['d_kv']
    plan['shared.weight'] = ((config['vocab_size'], width), 1.)
    for number in range(config['num_layers']):
        block = f'encoder.block.{number}.layer'
        at = f'{block}.0.SelfAttention'
        plan.linear(f'{at}.q', width, inner, bias=False, gain=1 / math.sqrt(config['d_kv']))
        plan.linear(f'{at}.k', width, inner, bias=False)
        plan.linear(f'{at}.v', width, inner, bias=False)
        plan.linear(f'{at}.o', inner, width, bias=False, gain=.5)
        if number == 0:
            plan[f'{at}.relative_attention_bias.weight'] = (
                (config['relative_attention_num_buckets'], config['num_heads']), .3)
        plan.norm(f'{block}.0.layer_norm', width, bias=False)
        feed = f'{block}.1.DenseReluDense'
        plan.linear(f'{feed}.wi_0', width, config['d_ff'], bias=False)
        plan.linear(f'{feed}.wi_1', width, config['d_ff'], bias=False)
        plan.linear(f'{feed}.wo', config['d_ff'], width, bias=False, gain=.5)
        plan.norm(f'{block}.1.layer_norm', width, bias=False)
    plan.norm('encoder.final_layer_norm', width, bias=False)
    return plan


def clip(config):
    plan, width = Plan(), config['hidden_size']
    plan['text_model.embeddings.token_embedding.weight'] = ((config['vocab_size'], width), .5)
    plan['text_model.embeddings.position_embedding.weight'] = (
        (config['max_position_embeddings'], width), .1)
    for number in range(config['num_hidden_layers']):
        layer = f'text_model.encoder.layers.{number}'
        for part in ('q', 'k', 'v', 'out'):
            plan.linear(f'{layer}.self_attn.{part}_proj', width, width)
        plan.norm(f'{layer}.layer_norm1', width)
        plan.linear(f'{layer}.mlp.fc1', width, config['intermediate_size'])
        plan.linear(f'{layer}.mlp.fc2', config['intermediate_size'], width, gain=.5)
        plan.norm(f'{layer}.layer_norm2', width)
    plan.norm('text_model.final_layer_norm', width)
    return plan


def _double(plan, block, width, head):
    for name in ('norm1', 'norm1_context'):  # nothing is added at first: adaLN-zero
        plan.linear(f'{block}.{name}.linear', width, 6 * width, gain=0.)
    for name in ('to_q', 'to_k', 'to_v', 'to_out.0', 'add_q_proj', 'add_k_proj', 'add_v_proj',
                 'to_add_out'):
        plan.linear(f'{block}.attn.{name}', width, width)
    for name in ('norm_q', 'norm_k', 'norm_added_q', 'norm_added_k'):
        plan.norm(f'{block}.attn.{name}', head, bias=False)
    for name in ('ff', 'ff_context'):
        plan.linear(f'{block}.{name}.net.0.proj', width, 4 * width)
        plan.linear(f'{block}.{name}.net.2', 4 * width, width)


def _single(plan, block, width, head):
    plan.linear(f'{block}.norm.linear', width, 3 * width, gain=0.)
    for name in ('to_q', 'to_k', 'to_v'):
        plan.linear(f'{block}.attn.{name}', width, width)
    for name in ('norm_q', 'norm_k'):
        plan.norm(f'{block}.attn.{name}', head, bias=False)
    plan.linear(f'{block}.proj_mlp', width, 4 * width)
    plan.linear(f'{block}.proj_out', 5 * width, width)


def flux(config):
    plan, head = Plan(), config['attention_head_dim']
    width = config['num_attention_heads'] * head
    plan.linear('x_embedder', config['in_channels'], width)
    plan.linear('context_embedder', config['joint_attention_dim'], width)
    for name, inputs in (('timestep', 256), ('guidance', 256),
                         ('text', config['pooled_projection_dim'])):
        plan.linear(f'time_text_embed.{name}_embedder.linear_1', inputs, width)
        plan.linear(f'time_text_embed.{name}_embedder.linear_2', width, width)
    for number in range(config['num_layers']):
        _double(plan, f'transformer_blocks.{number}', width, head)
    for number in range(config['num_single_layers']):
        _single(plan, f'single_transformer_blocks.{number}', width, head)
    plan.linear('norm_out.linear', width, 2 * width, gain=0.)
    plan.linear('proj_out', width, config['in_channels'], gain=0.)
    return plan


PLANS = dict(vae=vae, text_encoder=clip, text_encoder_2=t5, transformer=flux)


def fresh(part, config, generator):
    """A part's first weights."""
    return {name: torch.ones(shape) if deviation is None
            else torch.randn(shape, generator=generator) * deviation
            for name, (shape, deviation) in PLANS[part](config).items()}


def parameters(part, config):
    return sum(math.prod(shape) for shape, _ in PLANS[part](config).values())


if __name__ == '__main__':
    sizes = {part: parameters(part, config) for part, config in CONFIGS.items()}
    for part, size in sizes.items():
        print(f'{part}: {size / 1e6:.2f} M')
    print(f'{2 * sum(sizes.values()) / 1e6:.1f} MB in bf16')
