# SPDX-License-Identifier: MIT
"""What `fluxfs --plan` foretells of this machine's device, beside what it then does.

usage: plan.py FLUXFS BENCH_PICTURE MODEL BACKEND SIZE STEPS MODULES BUDGET_MB …
e.g.   plan.py build/fs/fluxfs build/tests/bench/bench_picture etc/mini cpu 256x256 20 none 20 30 40 100

In turns, budget by budget. A step of bench_picture is the mean of a picture's, loading included, so
that of the plan is too. The exit status is 1 if one is more than 15 % off.
"""
import json
import re
import subprocess
import sys

LIMIT = 0.15


def output(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def seconds(text):
    """Of a time as the plan has it: 12.3 ms, 45.6 s, 12 min 3 s, 1 h 12 min."""
    words = text.split()
    units = {'h': 3600, 'min': 60, 's': 1, 'ms': 0.001}
    return sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2]))


def foretold(fluxfs, model, backend, size, steps, modules, budget_mb):
    more = [] if modules == 'none' else [f'--module-dir={modules}']
    text = output([fluxfs, '--config=/dev/null', '--plan', f'--model={model}', f'--backend={backend}',
                   f'--size={size}', f'--steps={steps}', f'--vram-budget={budget_mb}000000', *more])
    picture = re.search(r'a picture +([^:]+):.* steps ([^,]+),', text)
    rates = re.search(r'^device .*: [^,]+, (.*) \(measured', text, re.M)
    return seconds(picture[2]) / int(steps), seconds(picture[1]), rates[1] if rates else ''


def measured(picture, model, backend, size, steps, modules, budget_mb):
    more = [] if modules == 'none' else [f'modules={modules}']
    lines = output([picture, model, f'backend={backend}', f'size={size}', f'steps={steps}', 'runs=4',
                    f'budget_mb={budget_mb}', 'json=1', *more]).splitlines()
    warm = sorted((run['step_s'], run['wall_s']) for run in map(json.loads, lines) if run.get('run', 0) > 0)
    return warm[len(warm) // 2]


def main():
    fluxfs, picture, model, backend, size, steps, modules, *budgets = sys.argv[1:]
    worst = 0
    print(f'{"budget MB":>10} {"step, plan":>11} {"measured":>9} {"off":>6} {"picture, plan":>14} {"measured":>9}')
    for budget_mb in budgets:
        plan = foretold(fluxfs, model, backend, size, steps, modules, budget_mb)
        real = measured(picture, model, backend, size, steps, modules, budget_mb)
        off = plan[0] / real[0] - 1
        worst = max(worst, abs(off))
        print(f'{budget_mb:>10} {plan[0]:11.5f} {real[0]:9.5f} {100 * off:+5.0f}% {plan[1]:14.4f} {real[1]:9.4f}  '
              f'{plan[2]}', flush=True)
    return 1 if worst > LIMIT else 0


if __name__ == '__main__':
    sys.exit(main())
