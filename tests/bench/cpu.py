# SPDX-License-Identifier: MIT
"""fluxfs against diffusers on the CPU: same weights, prompt, size, steps and threads, same run.

usage: cpu.py --fluxfs BINARY --python PYTHON_WITH_DIFFUSERS [--model FOLDER] [--size WxH]
              [--steps N] [--threads N] [--repeat N] [--option OPTION …]

The two take turns, so that what else the machine does meets both. Of each round: the time from
starting the command to the PNG, and of a further, warm picture. Medians, ratios and targets are
printed; the exit status is 1 if a target is missed, 2 if either side failed. --option passes a
further option to fluxfs (--option=--vram-budget=10M).
"""
import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT = 'a large red circle on a white background'
COMMAND_RATIO, WARM_RATIO, WARM_SECONDS = 0.2, 0.8, 2.0
PATIENCE_S = 600
POLL_S, FAILURE_POLL_S = 0.005, 0.5


class Failed(Exception):
    pass


def wait_for(found, process, what):
    """Polls until `found()` is true, gently: both cores are at work. Gives up when the process
    ends."""
    limit = time.monotonic() + PATIENCE_S
    while not (value := found()):
        if process.poll() is not None:
            raise Failed(f'fluxfs ended with status {process.returncode} while waiting for {what}')
        if time.monotonic() > limit:
            raise Failed(f'no {what} within {PATIENCE_S} s')
        time.sleep(POLL_S)
    return value


@contextlib.contextmanager
def mounted(options, folder):
    """A fluxfs of its own with an empty state; yields its mount point and process."""
    mount, state = f'{folder}/mnt', f'{folder}/state'
    os.makedirs(mount)
    command = [options.fluxfs, '--foreground', '--backend=cpu', f'--model={options.model}',
               f'--threads={options.threads}', f'--state-dir={state}', *options.option, mount]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: os.path.exists(f'{mount}/new'), process, 'mount')
        yield mount, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            subprocess.run(['fusermount3', '-uz', mount], check=False)


def pictures(mount):
    return {name for name in os.listdir(f'{mount}/images')
            if name.endswith('.png') and not os.path.islink(f'{mount}/images/{name}')}


def check_picture(data):
    if not (data.startswith(b'\x89PNG\r\n\x1a\n') and data.endswith(b'IEND\xaeB`\x82')):
        raise Failed('fluxfs: what appeared in images/ is no whole PNG')


def check_jobs(mount):
    for job in os.listdir(f'{mount}/jobs'):
        with open(f'{mount}/jobs/{job}/state') as state:
            if state.read().strip() == 'failed':
                with open(f'{mount}/jobs/{job}/error') as error:
                    raise Failed(f'fluxfs: job {job} failed: {error.read().strip()}')


def paint(options, mount, process, number):
    """Writes a prompt to `new` and reads the picture that comes of it."""
    before = pictures(mount)
    prompt = f'{PROMPT} {number}' if number else PROMPT
    with open(f'{mount}/new', 'w') as file:
        file.write(f'{prompt} --steps {options.steps} --guidance 3.5 --size {options.size}'
                   f' --seed {3 + number}\n')

    looked = time.monotonic()

    def finished():
        nonlocal looked
        if time.monotonic() - looked > FAILURE_POLL_S:
            looked = time.monotonic()
            check_jobs(mount)
        return pictures(mount) - before
    name = wait_for(finished, process, 'picture').pop()
    with open(f'{mount}/images/{name}', 'rb') as file:
        check_picture(file.read())


def run_ours(options):
    """Seconds from starting the command to the first PNG, and of a warm picture."""
    with tempfile.TemporaryDirectory(prefix='fluxfs-bench-') as folder:
        start = time.perf_counter()
        with mounted(options, folder) as (mount, process):
            ready = time.perf_counter() - start
            paint(options, mount, process, 0)
            command = time.perf_counter() - start
            start = time.perf_counter()
            paint(options, mount, process, 1)
            warm = time.perf_counter() - start
    return dict(command_s=command, warm_s=warm, mounted_s=ready)


def run_peer(options):
    with tempfile.TemporaryDirectory(prefix='fluxfs-bench-') as folder:
        done = subprocess.run(
            [options.python, f'{HERE}/diffusers_cpu.py', '--model', options.model, '--prompt',
             PROMPT, '--size', options.size, '--steps', str(options.steps), '--threads',
             str(options.threads), '--out', f'{folder}/picture.png'],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Failed(f'diffusers failed: {done.stderr.strip().splitlines()[-1:]}')
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return result | dict(warm_s=result['warm_s'][0])


def processor():
    with open('/proc/cpuinfo') as file:
        names = [line.split(':', 1)[1].strip() for line in file if line.startswith('model name')]
    return f'{names[0] if names else platform.machine()}, {os.cpu_count()} cores'


def report(options, rounds):
    """Prints medians and ratios; returns whether every target is met."""
    def middle(side, figure):
        return statistics.median(pair[side][figure] for pair in rounds)
    print(f'{time.strftime("%Y-%m-%d")}, {processor()}, {options.threads} threads, '
          f'{options.size}, {options.steps} steps, {len(rounds)} rounds, medians')
    met = True
    for figure, title, target in (('command_s', 'command to PNG', COMMAND_RATIO),
                                  ('warm_s', 'warm image', WARM_RATIO)):
        ours, peer = middle('fluxfs', figure), middle('diffusers', figure)
        good = ours <= target * peer and (figure != 'warm_s' or ours <= WARM_SECONDS)
        limit = f' and {WARM_SECONDS:g} s' if figure == 'warm_s' else ''
        print(f'{title:15} fluxfs {ours:7.3f} s  diffusers {peer:7.3f} s  ratio {ours / peer:.3f}'
              f'  target {target:g}{limit}: {"met" if good else "MISSED"}')
        met = met and good
    print(f'start to mounted {middle("fluxfs", "mounted_s"):.3f} s; diffusers: imports '
          f'{middle("diffusers", "import_s"):.2f} s, loading {middle("diffusers", "load_s"):.2f} s')
    return met


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--fluxfs', required=True)
    parser.add_argument('--python', default=sys.executable)
    parser.add_argument('--model', default=os.path.normpath(f'{HERE}/../../etc/mini'))
    parser.add_argument('--size', default='256x256')
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeat', type=int, default=5)
    parser.add_argument('--option', action='append', default=[])
    options = parser.parse_args()
    options.model = os.path.abspath(options.model)
    rounds = []
    try:
        for number in range(options.repeat):
            rounds.append(dict(fluxfs=run_ours(options), diffusers=run_peer(options)))
            print(f'round {number + 1}: ' + ', '.join(
                f'{side} {result["command_s"]:.3f} s and {result["warm_s"]:.3f} s'
                for side, result in rounds[-1].items()), flush=True)
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 2
    return 0 if report(options, rounds) else 1


if __name__ == '__main__':
    sys.exit(main())
