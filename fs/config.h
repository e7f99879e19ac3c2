/* SPDX-License-Identifier: MIT */
/*
 * The configuration: defaults < /etc/fluxfs.ini < ~/.config/fluxfs/fluxfs.ini (or the one file of
 * --config) < the command line.
 *
 *   fluxfs [OPTIONS] MOUNTPOINT
 *   fluxfs [OPTIONS] SOURCE MOUNTPOINT        as mount(8) calls us
 *   fluxfs --plan [OPTIONS]
 *
 * Every key of the ini file (section [fluxfs]) is also a word for -o, and a --option with dashes:
 * `vram_budget = 12G`, `-o vram_budget=12G`, `--vram-budget=12G`. SOURCE, unless it is "fluxfs" or
 * "none", is the model. mount(8)'s own words after -o are accepted and mean nothing here.
 */
#ifndef FLUXFS_FS_CONFIG_H
#define FLUXFS_FS_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "engine/error.h"
#include "fs/prompt.h"

enum config_action { CONFIG_MOUNT, CONFIG_HELP, CONFIG_VERSION, CONFIG_PLAN };
enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* What --plan is told besides settings; 0: nothing. */
struct config_plan {
    uint64_t vram_bytes;
    double link_gb_s, tflops, bandwidth_gb_s; /* 10⁹ bytes, 10¹² operations, a second */
    uint32_t jobs;
};

/* Strings are owned, absolute paths where they are paths, and never NULL but where it says so. */
struct config {
    /* For help and version nothing else is filled in; a plan has no mountpoint and no state. */
    enum config_action action;
    struct config_plan plan;
    char *mountpoint; /* without ".", ".." and symbolic links, if there is such a place */
    char *source;     /* the first column of /proc/mounts: SOURCE, the model's path, or "fluxfs" */
    char *model;      /* checkpoint folder; by default the embedded one */
    char *backend;    /* auto, cpu or cuda */
    char *module_dir; /* where fluxfs-cuda.so lies; NULL if nowhere */
    char *state_dir;
    char *trace_path;              /* NULL: no trace */
    uint64_t vram_budget_bytes;    /* 0: automatic */
    int threads;                   /* 0: one for each core */
    struct prompt_values defaults; /* steps, guidance, size … of prompts that don't say */
    uint32_t queue_limit;          /* most jobs waiting; 0: none */
    uint64_t images_limit_bytes;   /* disk use of images; 0: none */
    uid_t uid;                     /* owner of the files shown, by default the caller's */
    gid_t gid;
    mode_t umask; /* taken off the modes shown; by default 022 */
    bool allow_other;
    bool read_prompts; /* others may read prompts that aren't theirs */
    bool noexec;       /* mounted so */
    bool foreground;
    enum log_level log_level;
    uint32_t given; /* which keys the command line has: config_key_bits */
};

/* Reads everything. On failure the config needs no finishing. Errors are one line that names file,
 * line and key, or the option: "/etc/fluxfs.ini:7: vram_budget: 12Q is no size (try 12G …)".
 * Looked up on the disk are the ini files, the mountpoint, and where the embedded model and the
 * modules lie.
 * Failure: EINVAL, ENOMEM, ENOENT, or reading's errno. */
int config_load(struct config *config, int argc, char *const argv[], struct error *err);
void config_finish(struct config *config);

/* For --help and --version. */
void config_print_help(FILE *out);
void config_print_version(FILE *out);

enum {
    CONFIG_UNITLESS_MIN = 1 << 20,      /* bytes; a smaller number needs a unit, or is 0 */
    CONFIG_IMAGES_LIMIT_MIN = 64 << 20, /* bytes; the largest picture takes 48 MiB */
};

/* "12G", "22.3G", "512M", "4096B", "auto" (0); powers of 1024, with B or iB after if one likes.
 * A number alone is bytes; one below CONFIG_UNITLESS_MIN, but for 0, is refused: 12 was to be 12G.
 * Failure: EINVAL with the reason. */
int config_parse_size(uint64_t *bytes, const char *text, struct error *err);

/* The same for images_limit: 0 is no limit, less than CONFIG_IMAGES_LIMIT_MIN is refused. */
int config_parse_images_limit(uint64_t *bytes, const char *text, struct error *err);

/* The shortest text that config_parse_size takes back exactly ("22.3G" becomes what it stands for
 * in bytes if need be); 0 is "auto". */
void config_format_size(char text[32], uint64_t bytes);

#endif
