/* SPDX-License-Identifier: MIT */
/*
 * What FUSE costs at least on this machine: a mount with three files of 100 bytes and no program
 * behind them to speak of, for tests/bench/fs.py to measure against. Attributes are known for ever.
 *   direct   not cached
 *   cached   pages kept, no flush
 *   sink     takes what is written
 *
 * usage: fuse_floor MOUNTPOINT     (in the foreground)
 */
#define FUSE_USE_VERSION 312

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SIZE = 100, FIRST_FILE = 2, FILES = 3 };

/* As fluxfs has. */
enum { MAX_THREADS = 32, IDLE_THREADS = 8 };

static const char *const names[FILES] = {"direct", "cached", "sink"};
static char content[SIZE];

static struct stat attr_of(fuse_ino_t ino)
{
    bool folder = ino == FUSE_ROOT_ID;

    return (struct stat){
        .st_ino = ino,
        .st_mode = folder ? S_IFDIR | 0755 : S_IFREG | 0644,
        .st_nlink = 1,
        .st_size = folder ? 0 : SIZE,
    };
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    for (fuse_ino_t i = 0; i < FILES; i++) {
        if (strcmp(name, names[i]) == 0) {
            struct fuse_entry_param entry = {
                .ino = FIRST_FILE + i,
                .attr = attr_of(FIRST_FILE + i),
                .attr_timeout = 3600,
                .entry_timeout = 3600,
            };
            fuse_reply_entry(req, &entry);
            return;
        }
    }
    fuse_reply_err(req, ENOENT);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st = attr_of(ino);

    fuse_reply_attr(req, &st, 3600);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    bool cached = ino == FIRST_FILE + 1;

    fi->direct_io = !cached;
    fi->keep_cache = cached;
    fi->noflush = (fi->flags & O_ACCMODE) == O_RDONLY;
    fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    size_t left = offset < SIZE ? SIZE - (size_t)offset : 0;

    fuse_reply_buf(req, content + SIZE - left, left < size ? left : size);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *bytes, size_t size, off_t offset,
                     struct fuse_file_info *fi)
{
    fuse_reply_write(req, size);
}

static void do_done(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops ops = {
    .lookup = do_lookup,
    .getattr = do_getattr,
    .open = do_open,
    .read = do_read,
    .write = do_write,
    .flush = do_done,
    .release = do_done,
};

int main(int argc, char **argv)
{
    char program[] = "fuse_floor", dash_o[] = "-o", options[] = "default_permissions";
    char *fuse_argv[] = {program, dash_o, options, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, fuse_argv);
    struct fuse_loop_config *loop = fuse_loop_cfg_create();
    struct fuse_session *session;
    int code = EXIT_FAILURE;

    if (argc != 2 || loop == NULL) {
        fprintf(stderr, "usage: fuse_floor MOUNTPOINT\n");
        return EXIT_FAILURE;
    }
    fuse_loop_cfg_set_max_threads(loop, MAX_THREADS);
    fuse_loop_cfg_set_idle_threads(loop, IDLE_THREADS);
    memset(content, 'x', SIZE);
    session = fuse_session_new(&args, &ops, sizeof ops, NULL);
    if (session != NULL && fuse_set_signal_handlers(session) == 0) {
        if (fuse_session_mount(session, argv[1]) == 0) {
            code = fuse_session_loop_mt(session, loop) >= 0 ? EXIT_SUCCESS : EXIT_FAILURE;
            fuse_session_unmount(session);
        }
        fuse_remove_signal_handlers(session);
    }
    if (session != NULL) {
        fuse_session_destroy(session);
    }
    fuse_loop_cfg_destroy(loop);
    return code;
}
