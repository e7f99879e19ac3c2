# SPDX-License-Identifier: MIT
"""fluxfs beside diffusers at full size, on the same weights in the same run, with the ratio to what
the card could do at best.

usage: flux.py --picture BENCH_PICTURE --model FOLDER [--modules FOLDER] [--backend cuda|cpu]
               [--python PYTHON_WITH_DIFFUSERS] [--sizes WxH,…] [--budgets MIB,…] [--peers MODE,…]
               [--steps N] [--limit SECONDS] [--out FILE] [--accuracy]

A budget of 0 is no limit; budgets are tried at the first size. The floor of a step is the larger of
two times measured here: its matrix products and attention, and the weights that the budget can't
hold over the link. (A card held to its power needs longer for all of them in a row: printed too.)
--accuracy compares final latents with diffusers in fp32. --limit bounds each run. Every result is
appended to --out as a line of JSON when it is there, so that what was measured is kept if the rest
is cut short. The exit status is 2 if a run of ours failed, 1 if a goal is missed.
"""
import argparse
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# Seconds a step on an H100, by size and budget in MiB; text encoders and decoder at 1024x1024.
STEP_GOALS = {('1024x1024', 0): 0.115, ('1024x1024', 20480): 0.118, ('1024x1024', 12288): 0.16,
              ('1024x1024', 3072): 0.34, ('1024x1024', 1331): 0.37, ('512x512', 0): 0.045}
TEXT_GOAL, DECODE_GOAL = 0.04, 0.13


def read_options():
    parser = argparse.ArgumentParser()
    parser.add_argument('--picture', required=True)
    parser.add_argument('--model', required=True)
    parser.add_argument('--modules', default='')
    parser.add_argument('--backend', default='cuda')
    parser.add_argument('--python', default=sys.executable)
    parser.add_argument('--sizes', default='1024x1024,512x512')
    parser.add_argument('--budgets', default='20480,12288,3072,1331')
    parser.add_argument('--peers', default='eager,compiled,group,sequential')
    parser.add_argument('--steps', type=int, default=8)
    parser.add_argument('--limit', type=float, default=150)
    parser.add_argument('--out')
    parser.add_argument('--accuracy', action='store_true')
    options = parser.parse_args()
    options.sizes = [size for size in options.sizes.split(',') if size]
    options.budgets = [int(budget) for budget in options.budgets.split(',') if budget]
    options.peers = [peer for peer in options.peers.split(',') if peer]
    return options


class Results:
    def __init__(self, path):
        self.path, self.all = path, []

    def add(self, **result):
        self.all.append(result)
        line = json.dumps(result)
        print(line[:400], flush=True)
        if self.path:
            with open(self.path, 'a') as file:
                file.write(line + '\n')

    def find(self, **wanted):
        for result in self.all:
            if all(result.get(key) == value for key, value in wanted.items()):
                return result
        return None


def run(command, limit):
    """The JSON lines that a command prints, or why there are none."""
    start = time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return None, f'not ready after {limit:g} s'
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    if done.returncode != 0 or not lines:
        last = done.stderr.strip().splitlines()[-1:] or ['']
        return None, f'status {done.returncode} after {time.monotonic() - start:.0f} s: {last[0]}'
    return lines, None


def run_ours(options, results, size, budget, *more):
    command = [options.picture, options.model, f'backend={options.backend}', f'size={size}',
               f'steps={options.steps}', 'runs=5', 'json=1', *more]
    if options.modules:
        command.append(f'modules={options.modules}')
    if budget:
        command.append(f'budget_mb={round(budget * 1.048576)}')
    lines, why = run(command, options.limit)
    if lines is None:
        results.add(who='fluxfs', size=size, budget=budget, error=why)
        return
    runs, end = lines[:-1], lines[-1]
    best = {key: min(each[key] for each in runs)
            for key in ('text_s', 'condition_s', 'step_s', 'decode_s', 'wall_s')}
    results.add(who='fluxfs', size=size, budget=budget, first_s=runs[0]['wall_s'], runs=runs, **best,
                **end)


def run_peer(options, results, mode, size, *more):
    command = [options.python, f'{HERE}/flux_peer.py', mode, '--model', options.model, '--size', size,
               '--device', 'cuda' if options.backend == 'cuda' else 'cpu', '--steps',
               str(options.steps), '--dtype',
               'bfloat16' if options.backend == 'cuda' else 'float32', *more]
    lines, why = run(command, options.limit)
    results.add(who='diffusers', size=size, **(lines[-1] if lines else dict(mode=mode, error=why)))


# ---- accuracy ----

def read_latents(path):
    import numpy
    return numpy.fromfile(path, numpy.float32).astype(numpy.float64)


def compare_latents(options, results, size):
    """Final latents of ours and of diffusers in bf16, against diffusers in fp32."""
    import numpy
    paths = {name: f'/tmp/flux-latents-{os.getpid()}-{name}' for name in ('exact', 'peer', 'ours')}
    for name, dtype in (('exact', 'float32'), ('peer', 'bfloat16')):
        run_peer(options, results, 'latents', size, '--latents', paths[name], '--dtype', dtype)
    run_ours(options, results, size, 0, f'latents={paths["ours"]}', 'same=1')
    if not all(os.path.exists(path) for path in paths.values()):
        results.add(who='accuracy', size=size, error='not all latents are there')
        return
    exact = read_latents(paths['exact'])
    errors = {name: float(numpy.linalg.norm(read_latents(paths[name]) - exact)
                          / numpy.linalg.norm(exact)) for name in ('ours', 'peer')}
    results.add(who='accuracy', size=size, steps=options.steps, **errors)
    for path in paths.values():
        os.unlink(path)


# ---- the table ----

def step_bytes(options):
    """Weights that a step needs (modulations are computed beforehand)."""
    with open(f'{options.model}/transformer/config.json') as file:
        config = json.load(file)
    width = config['num_attention_heads'] * config['attention_head_dim']
    return 2 * width**2 * (24 * config['num_layers'] + 12 * config['num_single_layers'])


def floor_of(options, results, size, budget):
    """Seconds, or None where ceilings were not measured."""
    best = results.find(who='diffusers', size=size, mode='ceilings')
    if best is None or 'error' in best:
        return None
    compute = best['linear_s'] + best['attention_s']
    if not budget or 'link_bytes_s' not in best:
        return compute
    return max(compute, max(0, step_bytes(options) - budget * 2**20) / best['link_bytes_s'])


def row(title, result, floor, goal):
    """One line of the table; False if its goal is missed."""
    if result is None:
        return True
    if 'error' in result:
        print(f'{title:34} {result["error"]}')
        return goal is None
    step = result['step_s']
    memory = max(result.get('device_used_bytes', 0), result.get('peak_bytes', 0))
    met = goal is None or step <= goal
    print(f'{title:34} {step:8.4f} {step / floor if floor else 0:7.2f} {result["text_s"]:8.4f} '
          f'{result["decode_s"]:8.4f} {memory / 2**30:8.2f}'
          + ('' if goal is None else f'   goal {goal:g}: {"met" if met else "MISSED"}'))
    return met


def print_table(options, results):
    met = True
    device = next((result['device'] for result in results.all if 'device' in result), '?')
    print(f'\n{time.strftime("%Y-%m-%d")}, {device}, {options.model}, {options.steps} steps')
    print(f'{"":34} {"s/step":>8} {"÷ floor":>7} {"text s":>8} {"decode":>8} {"GiB peak":>8}')
    for size in options.sizes:
        floor = floor_of(options, results, size, 0)
        if floor:
            print(f'{size + ": floor":34} {floor:8.4f}')
            row_s = results.find(who='diffusers', size=size, mode='ceilings').get('row_s', 0)
            print(f'{"   its operations in a row":34} {row_s:8.4f}')
        for budget in [0] + (options.budgets if size == options.sizes[0] else []):
            title = f'{size}: fluxfs' + (f' in {budget / 1024:.3g} GiB' if budget else '')
            result = results.find(who='fluxfs', size=size, budget=budget)
            goal = STEP_GOALS.get((size, budget)) if options.backend == 'cuda' else None
            met &= row(title, result, floor_of(options, results, size, budget), goal)
            if budget == 0 and goal and size == options.sizes[0] and result and 'error' not in result:
                met &= result['text_s'] <= TEXT_GOAL and result['decode_s'] <= DECODE_GOAL
                print(f'{"":34} goals: text {TEXT_GOAL:g} s, decode {DECODE_GOAL:g} s')
        for peer in options.peers:
            row(f'{size}: diffusers, {peer}',
                results.find(who='diffusers', size=size, mode=peer), floor, None)
    for result in results.all:
        if result['who'] == 'accuracy' and 'error' not in result:
            met &= result['ours'] <= result['peer']
            print(f'final latents, {result["size"]}: {result["ours"]:.2e} from fp32, diffusers in '
                  f'bf16 {result["peer"]:.2e}')
    return met


def main():
    options = read_options()
    results = Results(options.out)
    first = options.sizes[0]
    for size in options.sizes:
        run_peer(options, results, 'ceilings', size)
        run_ours(options, results, size, 0)
    for budget in options.budgets:
        run_ours(options, results, first, budget)
    for peer in options.peers:
        for size in options.sizes if peer in ('eager', 'compiled') else [first]:
            run_peer(options, results, peer, size,
                     *(['--runs', '1'] if peer in ('group', 'sequential') else []))
    if options.accuracy:
        compare_latents(options, results, options.sizes[-1])
    met = print_table(options, results)
    if any(result['who'] == 'fluxfs' and 'error' in result for result in results.all):
        return 2
    return 0 if met else 1


if __name__ == '__main__':
    sys.exit(main())
