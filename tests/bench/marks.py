# SPDX-License-Identifier: MIT
"""What the timeline's marks cost: steps of pictures with and without them, in turns in one process.

usage: marks.py BENCH_PICTURE MODEL BACKEND SIZE STEPS MODULES BUDGET_MB …
e.g.   marks.py build/tests/bench/bench_picture etc/mini cpu 256x256 20 none 0 20

A budget of 0 is no limit. The first four pictures, during which weights are read, pinned and planned
anew, don't count. The cost may come out below nothing: by how much says how far to trust it. The
exit status is 1 if the best or the median step takes more than 1 % longer with marks.
"""
import json
import statistics
import subprocess
import sys

EACH, FIRST = 8, 4
LIMIT = 0.01


def paint(picture, model, backend, size, steps, modules, budget_mb):
    more = [] if modules == 'none' else [f'modules={modules}']
    lines = subprocess.run(
        [picture, model, f'backend={backend}', f'size={size}', f'steps={steps}', 'timeline=turns',
         f'runs={FIRST + 2 * EACH}', f'budget_mb={budget_mb}', 'json=1', *more],
        check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    runs = [run for run in map(json.loads, lines) if run.get('run', 0) >= FIRST]
    return runs[::2], runs[1::2]


def main():
    picture, model, backend, size, steps, modules, *budgets = sys.argv[1:]
    worst = 0
    print(f'{"budget MB":>10} {"marks a step":>13} {"best with":>10} {"without":>9} {"cost":>8} '
          f'{"median with":>12} {"without":>9} {"cost":>8}  s')
    for budget_mb in budgets:
        marked, bare = paint(picture, model, backend, size, steps, modules, budget_mb)
        line = f'{budget_mb:>10} {statistics.mean(run["step_marks"] for run in marked) / int(steps):13.1f}'
        for take, width in (min, 10), (statistics.median, 12):
            pair = [take(run['step_s'] for run in runs) for runs in (marked, bare)]
            cost = pair[0] / pair[1] - 1
            worst = max(worst, cost)
            line += f' {pair[0]:{width}.5f} {pair[1]:9.5f} {100 * cost:+7.2f}%'
        print(line, flush=True)
    return 1 if worst > LIMIT else 0


if __name__ == '__main__':
    sys.exit(main())
