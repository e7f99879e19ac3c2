/* SPDX-License-Identifier: MIT */
#include "alloc/host_memory.h"

#include "engine/engine.h"

void engine_host_memory(uint64_t *total_bytes, uint64_t *available_bytes)
{
    struct host_memory memory = host_memory();

    *total_bytes = memory.total_bytes;
    *available_bytes = memory.available_bytes;
}
