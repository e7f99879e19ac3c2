# SPDX-License-Identifier: MIT
"""The four stages of the training; each takes a Run (train.py) and goes on where it stopped."""
import math

import torch
import torch.nn.functional as F

import data
import draw
import letters
import model
import shapes
from optimise import Optimiser, Weights, schedule
from recorded import Steps

LABELS = len(draw.SHAPES) + 2, len(draw.COLOURS) + 1, len(letters.ALPHABET) + 1


def _mean(values):
    """Of the tensors collected since the last report."""
    mean = torch.stack(values).mean(0).tolist()
    values.clear()
    return mean


# The autoencoder: windows of pictures first, whole ones at the end.

def vae(run):
    recipe, config = run.recipe, run.configs['vae']
    weights = Weights({'vae': run.parts['vae']}, run.device)
    run.training = weights
    optimiser = Optimiser(weights, betas=(.9, .99), decay=0., muon=False)
    squares, losses = [], []
    for progress in run.steps('vae'):
        whole = progress > .6
        torch.backends.cudnn.benchmark = not whole  # one shape, then many
        picture = _pictures(run, recipe.whole_batch if whole else recipe.crop_batch, whole)
        loss, square = _vae_loss(weights.views(run.kind)['vae'], config, picture.to(run.kind),
                                 coarse=not whole and run.step % 4 == 0)
        loss.backward()
        optimiser.step(recipe.vae_rate * schedule(progress), average=.998)
        squares.append(square)
        losses.append(loss.detach())
        if run.reports():
            error = -10 * math.log10(_mean(squares))
            run.report(f'loss {_mean(losses):.4f}, {error:.1f} dB in training')
    torch.backends.cudnn.benchmark = False
    run.report(f'autoencoder: {held_out_psnr(run):.2f} dB on held-out scenes')


def _pictures(run, batch, whole):
    world, crop = run.world, run.recipe.crop
    if whole:
        number, some = world.pick(batch)
        return draw.render(world.rows[number][some], *world.sizes[number]) * 2 - 1
    some = world.some(0, batch)
    width, height = world.sizes[0]
    corner = torch.stack([torch.randint(side - crop + 1, (batch,), device=run.device)
                          for side in (width, height)], 1)
    return draw.render(world.rows[0][some], width, height, corner, crop) * 2 - 1


def _vae_loss(w, config, picture, coarse):
    """`coarse`: the latents are halved first, and so must be the picture (arXiv 2502.09509):
    latents that shrink as pictures do are easier for the transformer."""
    mean, variance = model.encode(w, config, picture)
    # Not less noise than the transformer's own errors.
    variance = variance.clamp(-6, 10)
    z = mean + torch.randn_like(mean) * (variance / 2).exp()
    if coarse:
        z, picture = F.avg_pool2d(z, 2), F.avg_pool2d(picture, 2)
    again = model.decode(w, config, z.to(picture.dtype)).float()
    away = again - picture.float()
    square = away.square().mean()
    edges = sum(away.diff(dim=dim).abs().mean() for dim in (2, 3))
    divergence = .5 * (mean.square() + variance.exp() - 1 - variance).mean()
    return away.abs().mean() + 4 * square + .4 * edges + 3e-5 * divergence, square.detach() / 4


@torch.no_grad()
@model.unfused
def held_out_psnr(run):
    """Of pictures of held-out scenes, over all their pixels, in dB."""
    weights, config = run.current('vae'), run.configs['vae']
    errors = []
    for rows in run.held_out_rows().split(16):
        picture = draw.render(rows, *run.world.sizes[0])
        mean, _ = model.encode(weights, config, picture * 2 - 1)
        again = (model.decode(weights, config, mean) / 2 + .5).clamp(0, 1)
        errors.append((again - picture).square().mean((1, 2, 3)))
    return -10 * math.log10(torch.cat(errors).mean().item())


@torch.no_grad()
@model.unfused
def measure_latents(run):
    """Sets the shift and scale that make latents of mean 0 and deviation 1."""
    weights, config = run.current('vae'), run.configs['vae']
    rows = run.world.rows[0][:256]
    means = [model.encode(weights, config, draw.render(some, *run.world.sizes[0]) * 2 - 1)[0]
             for some in rows.split(16)]
    means = torch.cat(means)
    config['shift_factor'], config['scaling_factor'] = means.mean().item(), 1 / means.std().item()


# The text encoders alone: whoever reads them must find what the caption says of each thing.

def text(run):
    recipe = run.recipe
    weights = Weights({part: run.parts[part] for part in ('text_encoder', 'text_encoder_2')}
                      | {'reader': _reader(run)}, run.device)
    run.training = weights
    optimiser = Optimiser(weights)

    def loss(_, t5, clip, wanted):
        w = weights.views(run.kind)
        features, pooled = _understand(run, w, (t5, clip))
        reading, rights = _reading_loss(w['reader'], features, pooled, wanted)
        return reading, [reading, rights]

    step, told = Steps(optimiser, loss, run.records()), []
    for progress in run.steps('text'):
        number = int(torch.randint(len(run.world.sizes), ()))
        some = run.world.some(number, recipe.text_batch)
        inputs = (*run.world.words(number, some), data.answers(run.world.rows[number][some]))
        told.append(step('any', inputs, recipe.text_rate * schedule(progress), .999))
        if run.reports():
            error, rights, norm = _mean(told)
            run.report(f'loss {error:.4f}, everything read from {100 * rights:.1f} %')


def _reader(run):
    return data.question_plan(run.configs['text_encoder_2']['d_model'],
                              run.configs['text_encoder']['hidden_size'])


def _reading_loss(reader, features, pooled, wanted):
    """And the share of captions of which everything was found."""
    scores, rough = data.read(reader, features, pooled)
    spelled = -draw.WORD  # which CLIP's one vector need not hold
    loss = sum(weight * F.cross_entropy(some.flatten(0, 1), asked.flatten(), ignore_index=-1)
               for weight, some, asked in ((1, scores, wanted),
                                           (.5, rough[:, :spelled], wanted[:, :spelled])))
    return loss, ((scores.argmax(-1) == wanted) | (wanted < 0)).all(1).float().mean()


def _understand(run, w, ids):
    return (model.t5(w['text_encoder_2'], run.configs['text_encoder_2'], ids[0]),
            model.clip(w['text_encoder'], run.configs['text_encoder'], ids[1]))


# Flow matching: the transformer, and the text encoders with it.

def flow(run):
    recipe, config = run.recipe, run.configs['transformer']
    width = config['num_attention_heads'] * config['attention_head_dim']
    labels = {'label': torch.randn(sum(LABELS), width) * .02}
    weights = Weights({part: run.parts[part] for part in ('transformer', 'text_encoder',
                                                          'text_encoder_2')}
                      | {'labels': labels, 'reader': _reader(run)}, run.device)
    run.training = weights
    optimiser = Optimiser(weights, dict(text_encoder=.5, text_encoder_2=.5))

    def loss(number, noised, sigma, velocity, t5, clip, labels, wanted, share):
        w = weights.views(run.kind)
        features, pooled = _understand(run, w, (t5, clip))
        found, tokens = model.flux(w['transformer'], config, noised, features, pooled, sigma,
                                   torch.ones_like(sigma), run.world.sizes[number], tap=recipe.tap)
        error = F.mse_loss(found, velocity)
        # Each token tells early what it will show: colours, shapes and letters find their places
        # sooner. And the text encoders' tokens still tell what the caption says.
        naming = _naming_loss(w['labels']['label'], tokens, labels)
        reading, rights = _reading_loss(w['reader'], features, pooled, wanted)
        return error + share * (sum(naming) + reading), [error, *naming, rights]

    step, told = Steps(optimiser, loss, run.records()), []
    for progress in run.steps('flow'):
        number, some = run.world.pick(recipe.batch)
        sigma, noised, velocity = _noised(run, number, some)
        words = run.world.words(number, some, drop=.1)
        untold = (words[0] == run.world.nothing[0]).all(1, keepdim=True)
        wanted = data.answers(run.world.rows[number][some]).masked_fill(untold, -1)
        share = torch.full((), recipe.naming * (1 - progress), device=run.device)
        inputs = (noised, sigma, velocity, *words, run.world.labels[number][some].long(), wanted,
                  share)
        told.append(step(number, inputs, recipe.rate * schedule(progress), recipe.average))
        if run.reports():
            error, shape, colour, letter, rights, norm = _mean(told)
            run.report(f'loss {error:.4f}, naming shapes {shape:.3f}, colours {colour:.3f}, letters '
                       f'{letter:.3f}, {100 * rights:.0f} % read, gradient {norm:.2f}')
        if run.evaluates():
            run.evaluate(cfg=2.5)


def _noised(run, number, some):
    """Noise levels, what lies between latents and noise, and the velocity there."""
    x = run.world.latents[number][some].float()
    noise = torch.randn_like(x)
    # Where sampling spends its steps: logit-normal, moved as the scheduler does; a few anywhere.
    time = torch.sigmoid(torch.randn(len(x), device=x.device))
    time = torch.where(torch.rand_like(time) < .1, torch.rand_like(time), time)
    shift = math.exp(.5 + (x.shape[1] - 256) * .65 / 3840)
    sigma = shift * time / (1 + (shift - 1) * time)
    return sigma, x + sigma[:, None, None] * (noise - x), noise - x


def _naming_loss(label, tokens, wanted):
    """Of shapes, colours, and on signs letters."""
    scores = (tokens @ label.mT).float().split(LABELS, -1)
    on_signs = torch.where(wanted[..., 0] == LABELS[0] - 1, wanted[..., 2], -1)
    wanted = wanted[..., 0], wanted[..., 1], on_signs
    return [F.cross_entropy(score.flatten(0, 1), one.flatten(), ignore_index=-1, reduction='sum')
            / (one >= 0).sum().clamp(min=1) for score, one in zip(scores, wanted)]


# Guidance distillation: one pass learns what two passes, with and without the caption, make of it.

def distill(run):
    recipe, config = run.recipe, run.configs['transformer']
    teacher = {part: {name: tensor.to(run.device, run.kind) for name, tensor in
                      run.parts[part].items()} for part in shapes.CONFIGS}
    weights = Weights({'transformer': run.parts['transformer']}, run.device)
    run.training = weights
    optimiser = Optimiser(weights)
    with torch.no_grad():
        nothing = _understand(run, teacher, run.world.nothing)

    def loss(number, noised, sigma, guidance, t5, clip):
        size = run.world.sizes[number]
        with torch.no_grad():
            words = _understand(run, teacher, (t5, clip))
            told, free = (model.flux(teacher['transformer'], config, noised, *some, sigma,
                                     torch.ones_like(sigma), size) for some in
                          (words, [part.expand_as(like) for part, like in zip(nothing, words)]))
            wanted = free + guidance[:, None, None] * (told - free)
        w = weights.views(run.kind)['transformer']
        found = model.flux(w, config, noised, *words, sigma, guidance, size)
        # A high guidance should not count for more.
        error = ((found - wanted).square().mean((1, 2)) / guidance).mean()
        return error, [error]

    step, told = Steps(optimiser, loss, run.records()), []
    for progress in run.steps('distill'):
        number, some = run.world.pick(recipe.batch)
        sigma, noised, _ = _noised(run, number, some)
        guidance = 1 + recipe.most_guidance * torch.rand_like(sigma)
        guidance = torch.where(torch.rand_like(sigma) < .1, 1., guidance)
        inputs = (noised, sigma, guidance, *run.world.words(number, some, drop=.05))
        told.append(step(number, inputs, recipe.distill_rate * schedule(progress), recipe.average))
        if run.reports():
            error, norm = _mean(told)
            run.report(f'loss {error:.4f}, gradient {norm:.2f}')
        if run.evaluates():
            run.evaluate(guidance=3.5)


@torch.no_grad()
@model.unfused
def paint(run, captions, size, steps=20, guidance=1., cfg=None, seed=1):
    """Pictures [B, 3, H, W], 0 … 1, of captions, by the weights as they are now."""
    config, vae_config = run.configs['transformer'], run.configs['vae']
    width, height = size
    words = run.words()
    w = {part: run.current(part, run.kind) for part in shapes.CONFIGS}
    ids = [torch.tensor([encode(text) for text in captions], device=run.device)
           for encode in (words.t5, words.clip)]
    features, pooled = _understand(run, w, ids)
    nothing = [part.expand_as(like) for part, like in
               zip(_understand(run, w, run.world.nothing), (features, pooled))]
    generator = torch.Generator(run.device).manual_seed(seed)
    x = torch.randn(len(captions), width * height // 256, 64, device=run.device,
                    generator=generator)
    levels = model.sigmas(steps, x.shape[1])
    guidance = torch.full((len(x),), guidance, device=run.device)
    for now, then in zip(levels, levels[1:]):
        sigma = torch.full_like(guidance, now)
        velocity = model.flux(w['transformer'], config, x, features, pooled, sigma, guidance, size)
        if cfg:
            free = model.flux(w['transformer'], config, x, *nothing, sigma, guidance, size)
            velocity = free + cfg * (velocity - free)
        x = x + (then - now) * velocity
    z = model.unpack(x, height, width) / vae_config['scaling_factor'] + vae_config['shift_factor']
    picture = torch.cat([model.decode(w['vae'], vae_config, some.to(run.kind))
                         for some in z.split(32)])
    return (picture.float() / 2 + .5).clamp(0, 1)
