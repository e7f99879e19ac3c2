#!/bin/sh
# SPDX-License-Identifier: MIT
# A hundred images of 512 to 1024 px a side at FLUX.1-dev's shapes, under several budgets: steady.c
# on the back end that only counts memory, over a checkpoint without values.
# usage: hundred.sh STEADY SYNTHETIC-CHECKPOINT TOKENIZERS MODULES
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$2" "$folder/dev" --hollow --tokenizers "$3"
for budget_mb in 1500 3000 12000 20000 40000; do
    "$1" "$folder/dev" cuda "$4" $budget_mb 100 512 1024
done
