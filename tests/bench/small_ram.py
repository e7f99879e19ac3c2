# SPDX-License-Identifier: MIT
"""How much memory of its own a picture takes, page cache not counted, and how long.

usage: small_ram.py BENCH_PICTURE MODEL [NAME=VALUE …]      as bench_picture has them
"""
import subprocess
import sys
import time


def own_kib(pid):
    """Anonymous and shared memory: mapped files are page cache, which yields."""
    try:
        with open(f'/proc/{pid}/status') as file:
            fields = dict(line.split(':', 1) for line in file)
        return sum(int(fields[name].split()[0]) for name in ('RssAnon', 'RssShmem'))
    except (OSError, KeyError):
        return 0


def main():
    process = subprocess.Popen(sys.argv[1:])
    start, peak = time.monotonic(), 0
    while process.poll() is None:
        peak = max(peak, own_kib(process.pid))
        time.sleep(0.02)
    print(f'{time.monotonic() - start:.1f} s, at most {peak / 2**20:.2f} GiB of memory of its own')
    return process.returncode


if __name__ == '__main__':
    sys.exit(main())
