# SPDX-License-Identifier: MIT
"""Paints through the mounted directory, as anybody would: prompts into `new`, PNGs out of it."""
import contextlib
import os
import signal
import subprocess
import tempfile
import time

from PIL import Image

PATIENCE_S = 60


@contextlib.contextmanager
def mounted(fluxfs, model=None, *options):
    """A mount of its own with nothing in it; yields its path."""
    with tempfile.TemporaryDirectory(prefix='mini-') as folder:
        path = f'{folder}/mnt'
        os.mkdir(path)
        command = [fluxfs, '--foreground', '--config=/dev/null', f'--state-dir={folder}/state',
                   *([f'--model={os.path.abspath(model)}'] if model else []), *options, path]
        with open(f'{folder}/log', 'w') as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        try:
            end = time.monotonic() + PATIENCE_S
            while not os.path.exists(f'{path}/new'):
                if process.poll() is not None or time.monotonic() > end:
                    with open(f'{folder}/log') as log:
                        raise RuntimeError(f'no mount: {log.read()}')
                time.sleep(.02)
            yield path
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                subprocess.run(['fusermount3', '-uz', path], check=False)


def paint(mount, prompts):
    """Queues all prompts (with their options), and yields their pictures in order."""
    jobs = []
    for prompt in prompts:
        new = os.open(f'{mount}/new', os.O_RDWR)
        try:
            os.write(new, prompt.encode())
            jobs.append(os.read(new, 100).decode().strip())
        finally:
            os.close(new)
    for prompt, job in zip(prompts, jobs):
        with open(f'{mount}/jobs/{job}/wait') as file:
            state = file.read().strip()
        if state != 'done':
            with open(f'{mount}/jobs/{job}/error') as file:
                raise RuntimeError(f'"{prompt}" {state}: {file.read().strip()}')
        with Image.open(f'{mount}/jobs/{job}/image.png') as image:
            yield image.convert('RGB')
