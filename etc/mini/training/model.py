# SPDX-License-Identifier: MIT
"""FLUX.1's four networks as functions of their weights, small: an autoencoder, a T5 encoder, a CLIP
text model and the transformer.

Weights are dictionaries with the names that diffusers and transformers give them in a checkpoint,
so that loading and saving is nothing but reading and writing. `config` is a part's config.json.
What each function computes is what those libraries compute (store.py compares).
"""
import functools
import math

import torch
import torch.nn.functional as F

_fusing = False


def fuse(on=True):
    """Whether chains of small operations are compiled into one kernel (worth it on a GPU only)."""
    global _fusing
    _fusing = on
    if on:  # what can't be compiled runs as it is
        import torch._dynamo
        import torch.fx.experimental._config
        torch._dynamo.config.suppress_errors = True
        # A batch that is as large as a layer is wide must not be compiled for that case alone.
        torch.fx.experimental._config.use_duck_shape = False


def fused(function):
    compiled = None

    @functools.wraps(function)
    def call(*arguments):
        nonlocal compiled
        if not _fusing:
            return function(*arguments)
        compiled = compiled or torch.compile(function, dynamic=True)
        return compiled(*arguments)
    return call


def unfused(function):
    """What is called seldom is not worth compiling for."""
    @functools.wraps(function)
    def call(*arguments, **named):
        global _fusing
        before, _fusing = _fusing, False
        try:
            return function(*arguments, **named)
        finally:
            _fusing = before
    return call


def rows(table, ids):
    """Rows of a small table, by a product: the gradient of indexing adds up equal ids one by one,
    which took most of a step of the text encoders."""
    return (ids[..., None] == torch.arange(len(table), device=ids.device)).to(table.dtype) @ table


def linear(w, name, x):
    return F.linear(x, w[f'{name}.weight'], w.get(f'{name}.bias'))


# The autoencoder.

@fused
def _norm_silu(x, weight, bias, groups):
    return F.silu(F.group_norm(x.float(), groups, weight.float(), bias.float(), 1e-6)).to(x.dtype)


def _conv(w, name, x, stride=1, padding=1):
    return F.conv2d(x, w[f'{name}.weight'], w[f'{name}.bias'], stride, padding)


def _resnet(w, name, x, groups):
    y = _conv(w, f'{name}.conv1', _norm_silu(x, *_affine(w, f'{name}.norm1'), groups))
    y = _conv(w, f'{name}.conv2', _norm_silu(y, *_affine(w, f'{name}.norm2'), groups))
    if f'{name}.conv_shortcut.weight' in w:
        x = _conv(w, f'{name}.conv_shortcut', x, padding=0)
    return x + y


def _affine(w, name):
    return w[f'{name}.weight'], w[f'{name}.bias']


def _middle(w, name, x, groups):
    x = _resnet(w, f'{name}.resnets.0', x, groups)
    at = f'{name}.attentions.0'
    y = F.group_norm(x, groups, *_affine(w, f'{at}.group_norm'), 1e-6).flatten(2).transpose(1, 2)
    q, k, v = (linear(w, f'{at}.to_{part}', y) for part in 'qkv')
    score = (q @ k.transpose(1, 2)).float() / math.sqrt(q.shape[-1])
    y = linear(w, f'{at}.to_out.0', score.softmax(-1).to(v.dtype) @ v)
    return _resnet(w, f'{name}.resnets.1', x + y.transpose(1, 2).view_as(x), groups)


def encode(w, config, picture):
    """Pictures [B, 3, H, W], -1 … 1, to means and log variances [B, C, H/8, W/8]."""
    groups, levels = config['norm_num_groups'], len(config['block_out_channels'])
    x = _conv(w, 'encoder.conv_in', picture)
    for level in range(levels):
        for number in range(config['layers_per_block']):
            x = _resnet(w, f'encoder.down_blocks.{level}.resnets.{number}', x, groups)
        if level < levels - 1:
            x = _conv(w, f'encoder.down_blocks.{level}.downsamplers.0.conv', F.pad(x, (0, 1, 0, 1)),
                      stride=2, padding=0)
    x = _middle(w, 'encoder.mid_block', x, groups)
    x = _norm_silu(x, *_affine(w, 'encoder.conv_norm_out'), groups)
    return _conv(w, 'encoder.conv_out', x).float().chunk(2, 1)


def decode(w, config, z):
    """Latents [B, C, h, w] as the encoder makes them to pictures [B, 3, 8 h, 8 w]."""
    groups, levels = config['norm_num_groups'], len(config['block_out_channels'])
    x = _middle(w, 'decoder.mid_block', _conv(w, 'decoder.conv_in', z), groups)
    for level in range(levels):
        for number in range(config['layers_per_block'] + 1):
            x = _resnet(w, f'decoder.up_blocks.{level}.resnets.{number}', x, groups)
        if level < levels - 1:
            x = F.interpolate(x, scale_factor=2., mode='nearest')
            x = _conv(w, f'decoder.up_blocks.{level}.upsamplers.0.conv', x)
    return _conv(w, 'decoder.conv_out', _norm_silu(x, *_affine(w, 'decoder.conv_norm_out'), groups))


# The text encoders: attention written out, since they are small and T5's has a learned bias.

def _heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(q, k, v, bias):
    score = (q @ k.transpose(-1, -2)).float() + bias
    return (score.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


@fused
def _rms_norm(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


@functools.cache
def _buckets(tokens, count, furthest, device):
    """T5's bucket of the distance from each token (row) to each (column)."""
    place = torch.arange(tokens)
    away = place[None] - place[:, None]
    half = count // 2
    exact = half // 2
    far = exact + (torch.log(away.abs().clamp(min=1) / exact) / math.log(furthest / exact)
                   * (half - exact)).long()
    bucket = torch.where(away.abs() < exact, away.abs(), far.clamp(max=half - 1))
    return (bucket + half * (away > 0)).to(device)


def t5(w, config, ids):
    """Token ids [B, T] to [B, T, width]. Padding is attended to, as FLUX does."""
    x = rows(w['shared.weight'], ids)
    heads, eps = config['num_heads'], config['layer_norm_epsilon']
    bucket = _buckets(ids.shape[1], config['relative_attention_num_buckets'],
                      config['relative_attention_max_distance'], ids.device)
    table = w['encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight']
    bias = rows(table, bucket).permute(2, 0, 1).float()
    for number in range(config['num_layers']):
        block = f'encoder.block.{number}.layer'
        y = _rms_norm(x, w[f'{block}.0.layer_norm.weight'], eps)
        q, k, v = (_heads(linear(w, f'{block}.0.SelfAttention.{part}', y), heads) for part in 'qkv')
        x = x + linear(w, f'{block}.0.SelfAttention.o', _attend(q, k, v, bias))
        y = _rms_norm(x, w[f'{block}.1.layer_norm.weight'], eps)
        name = f'{block}.1.DenseReluDense'
        gate = F.gelu(linear(w, f'{name}.wi_0', y), approximate='tanh')
        x = x + linear(w, f'{name}.wo', gate * linear(w, f'{name}.wi_1', y))
    return _rms_norm(x, w['encoder.final_layer_norm.weight'], eps)


def clip(w, config, ids):
    """Token ids [B, 77] to the state at the end token, [B, width]."""
    places = ids.shape[1]
    x = rows(w['text_model.embeddings.token_embedding.weight'], ids) \
        + w['text_model.embeddings.position_embedding.weight'][:places]
    past = torch.full((places, places), -math.inf, device=ids.device).triu(1)
    heads, eps = config['num_attention_heads'], config['layer_norm_eps']
    width = x.shape[-1:]
    for number in range(config['num_hidden_layers']):
        layer = f'text_model.encoder.layers.{number}'
        y = F.layer_norm(x, width, *_affine(w, f'{layer}.layer_norm1'), eps)
        q, k, v = (_heads(linear(w, f'{layer}.self_attn.{part}_proj', y), heads) for part in 'qkv')
        y = _attend(q / math.sqrt(q.shape[-1]), k, v, past)
        x = x + linear(w, f'{layer}.self_attn.out_proj', y)
        y = F.layer_norm(x, width, *_affine(w, f'{layer}.layer_norm2'), eps)
        y = linear(w, f'{layer}.mlp.fc1', y)
        x = x + linear(w, f'{layer}.mlp.fc2', y * torch.sigmoid(1.702 * y))
    end = ids.argmax(1)  # the end token has the largest id
    x = x[torch.arange(len(ids), device=ids.device), end]
    return F.layer_norm(x, width, *_affine(w, 'text_model.final_layer_norm'), eps)


# The transformer.

def pack(z):
    """Latents [B, C, h, w] to tokens [B, h/2 · w/2, 4 C]."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)


def unpack(tokens, height, width):
    """Tokens of a picture of this size in pixels back to latents."""
    b, _, c = tokens.shape
    h, w = height // 16, width // 16
    z = tokens.view(b, h, w, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(b, c // 4, 2 * h, 2 * w)


@functools.cache
def rotations(axes, text_tokens, height, width, device):
    """Cosines and sines [tokens, head width / 2] for the text's tokens, then the picture's."""
    h, w = height // 16, width // 16
    place = torch.zeros(text_tokens + h * w, 3, dtype=torch.float64)
    place[text_tokens:, 1] = torch.arange(h).repeat_interleave(w)
    place[text_tokens:, 2] = torch.arange(w).repeat(h)
    angles = [place[:, i:i + 1] * 10000. ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
              for i, size in enumerate(axes)]
    angle = torch.cat(angles, 1)
    return angle.cos().float().to(device), angle.sin().float().to(device)


@fused
def _norm_rotate(x, weight, cos, sin):
    """Queries or keys [B, S, heads, width]: RMS norm, then adjacent pairs turned."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight.float()
    even, odd = y.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


@fused
def _modulate(x, shift, scale):
    y = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
    return (y * (1 + scale[:, None].float()) + shift[:, None].float()).to(x.dtype)


@fused
def _gated(x, gate, y):
    return x + gate[:, None] * y


@fused
def _gelu(x):
    return F.gelu(x, approximate='tanh')


def _joint(q, k, v):
    y = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
    return y.transpose(1, 2).flatten(2)


def _split(w, name, x, heads):
    return linear(w, name, x).unflatten(-1, (heads, -1))


def _double(w, block, x, text, temb, heads, turn):
    """Both streams through a block with weights of their own, and one attention."""
    tokens = text.shape[1]
    image = linear(w, f'{block}.norm1.linear', temb).chunk(6, 1)
    words = linear(w, f'{block}.norm1_context.linear', temb).chunk(6, 1)
    a, b = _modulate(x, *image[:2]), _modulate(text, *words[:2])
    at, cos, sin = f'{block}.attn', *turn
    q, k = ([_norm_rotate(_split(w, f'{at}.add_{part}_proj', b, heads),
                          w[f'{at}.norm_added_{part}.weight'], cos[:tokens], sin[:tokens]),
             _norm_rotate(_split(w, f'{at}.to_{part}', a, heads), w[f'{at}.norm_{part}.weight'],
                          cos[tokens:], sin[tokens:])] for part in 'qk')
    v = [_split(w, f'{at}.add_v_proj', b, heads), _split(w, f'{at}.to_v', a, heads)]
    y = _joint(*(torch.cat(part, 1) for part in (q, k, v)))
    x = _gated(x, image[2], linear(w, f'{at}.to_out.0', y[:, tokens:]))
    text = _gated(text, words[2], linear(w, f'{at}.to_add_out', y[:, :tokens]))
    a, b = _modulate(x, *image[3:5]), _modulate(text, *words[3:5])
    x = _gated(x, image[5], _feed(w, f'{block}.ff.net', a))
    return x, _gated(text, words[5], _feed(w, f'{block}.ff_context.net', b))


def _feed(w, name, x):
    return linear(w, f'{name}.2', _gelu(linear(w, f'{name}.0.proj', x)))


def _single(w, block, x, temb, heads, turn):
    shift, scale, gate = linear(w, f'{block}.norm.linear', temb).chunk(3, 1)
    y = _modulate(x, shift, scale)
    q, k = (_norm_rotate(_split(w, f'{block}.attn.to_{part}', y, heads),
                         w[f'{block}.attn.norm_{part}.weight'], *turn) for part in 'qk')
    attention = _joint(q, k, _split(w, f'{block}.attn.to_v', y, heads))
    # The product of both beside one another, in two parts.
    narrow, wide = w[f'{block}.proj_out.weight'].split([x.shape[-1], 4 * x.shape[-1]], 1)
    y = F.linear(attention, narrow, w[f'{block}.proj_out.bias']) \
        + F.linear(_gelu(linear(w, f'{block}.proj_mlp', y)), wide)
    return _gated(x, gate, y)


def _sinusoid(value):
    """Of 1000 times a value [B], [B, 256], cosines first."""
    frequency = torch.exp(-math.log(10000) * torch.arange(128, device=value.device) / 128)
    angle = 1000 * value[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


def _embedded(w, name, x):
    name = f'time_text_embed.{name}'
    return linear(w, f'{name}.linear_2', F.silu(linear(w, f'{name}.linear_1', x)))


def flux(w, config, x, text, pooled, sigma, guidance, size, tap=None):
    """Velocity [B, L, 64] of latent tokens x at noise levels sigma [B] in a picture of `size`
    (width, height) pixels. With `tap`, also the picture's tokens after that many blocks."""
    width, height = size
    heads, tokens = config['num_attention_heads'], text.shape[1]
    turn = rotations(tuple(config['axes_dims_rope']), tokens, height, width, x.device)
    kind = w['x_embedder.weight'].dtype
    temb = (_embedded(w, 'timestep_embedder', _sinusoid(sigma).to(kind))
            + _embedded(w, 'guidance_embedder', _sinusoid(guidance).to(kind))
            + _embedded(w, 'text_embedder', pooled))
    temb = F.silu(temb)
    x, text = linear(w, 'x_embedder', x.to(kind)), linear(w, 'context_embedder', text)
    tapped = None
    for number in range(config['num_layers']):
        x, text = _double(w, f'transformer_blocks.{number}', x, text, temb, heads, turn)
        tapped = x if tap == number + 1 else tapped
    x = torch.cat([text, x], 1)
    for number in range(config['num_single_layers']):
        x = _single(w, f'single_transformer_blocks.{number}', x, temb, heads, turn)
        tapped = x[:, tokens:] if tap == config['num_layers'] + number + 1 else tapped
    scale, shift = linear(w, 'norm_out.linear', temb).chunk(2, 1)
    velocity = linear(w, 'proj_out', _modulate(x[:, tokens:], shift, scale)).float()
    return velocity if tap is None else (velocity, tapped)


def sigmas(steps, tokens):
    """The scheduler's noise levels for a picture of so many tokens: steps + 1 numbers."""
    shift = math.exp(.5 + (tokens - 256) * .65 / 3840)
    times = [1 - i * (1 - 1 / steps) / max(steps - 1, 1) for i in range(steps)]
    return [shift / (shift + 1 / t - 1) for t in times] + [0.]
