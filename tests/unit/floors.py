#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Floors never look up: checks which of the project's headers each file includes.

usage: floors.py SOURCE_ROOT
"""
import pathlib
import re
import sys

MODEL = ["engine/model/", "engine/backend.h", "engine/blocks.h", "engine/checkpoint.h",
         "engine/error.h", "engine/file.h", "engine/json.h", "engine/ops.h",
         "engine/safetensors.h", "engine/scratch.h", "engine/stored.h", "engine/tensor.h"]
BACKEND = ["engine/backend.h", "engine/error.h", "engine/tensor.h", "alloc/page_source.h"]

# The first rule that fits a file's path says what it may include, by prefix.
RULES = [
    ("alloc/", ["alloc/"]),
    ("engine/model/", MODEL),
    ("engine/cpu/", BACKEND + ["engine/cpu/", "alloc/host_pages.h"]),
    ("engine/cuda/", BACKEND + ["engine/cuda/", "engine/card.h", "engine/module.h",
                               "alloc/host_memory.h"]),
    ("engine/", ["alloc/", "engine/"]),
    ("fs/", ["fs/", "engine/engine.h", "engine/error.h"]),
]
# Nobody but the engine's front door may name a back end.
BACKENDS_SEEN_BY = {"engine/engine.c"}


def faults(root):
    """One line for each include that breaks a rule; and how many files were looked at."""
    found, files = [], 0
    for path in sorted(root.glob("*/**/*")):
        name = path.relative_to(root).as_posix()
        allowed = next((may for prefix, may in RULES if name.startswith(prefix)), None)
        if allowed is None or path.suffix not in (".c", ".h", ".cc", ".cu", ".cuh"):
            continue
        files += 1
        text = path.read_text()
        for line in re.finditer(r'^\s*#\s*include\s+"([^"]+)"', text, re.M):
            header = line.group(1)
            where = f"{name}:{text.count(chr(10), 0, line.start()) + 1}"
            if not any(header.startswith(prefix) for prefix in allowed):
                found.append(f"{where}: may not include {header}")
            inside = name.startswith(("engine/cpu/", "engine/cuda/"))
            if re.match("engine/(cpu|cuda)/", header) and not inside and name not in BACKENDS_SEEN_BY:
                found.append(f"{where}: only {', '.join(BACKENDS_SEEN_BY)} may include {header}")
        if name.startswith("engine/model/") and name.endswith(".c") and re.search(r"^\s*#\s*if", text, re.M):
            found.append(f"{name}: model code has an #if")
    return found, files


def main():
    found, files = faults(pathlib.Path(sys.argv[1]))
    print("\n".join(found + [f"{files} files, {len(found)} faults"]))
    return 1 if found or files < 50 else 0


if __name__ == "__main__":
    sys.exit(main())
