/* SPDX-License-Identifier: MIT */
/* images/: files that never change, so the kernel may keep their pages. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "fs/ops_private.h"

void image_open(fuse_req_t req, struct handle *handle, struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    struct gallery_image image;
    struct error err = {0};
    int code = 0;

    if (handle->writable && fuse_req_ctx(req)->pid != daemon->tree.notifier_pid) {
        code = -EPERM;
    } else if (!tree_image(&daemon->tree, handle->node.id, &image)) {
        code = -ESTALE; /* replaced: the kernel looks the name up again */
    } else {
        handle->fd = gallery_open_image(daemon->gallery, image.name, &err);
        code = handle->fd < 0 ? err.code : 0;
    }
    if (code != 0) {
        handle_destroy(daemon, handle);
        fuse_reply_err(req, -code);
        return;
    }
    fi->keep_cache = 1;
    fi->noflush = 1;
    if (fuse_reply_open(req, fi) == -ENOENT) {
        handle_destroy(daemon, handle);
    }
}

void image_read(fuse_req_t req, struct handle *handle, size_t size, off_t offset)
{
    char *bytes = malloc(size);
    ssize_t got = -1;

    if (bytes == NULL) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    do {
        got = pread(handle->fd, bytes, size, offset);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        fuse_reply_err(req, errno);
    } else {
        fuse_reply_buf(req, bytes, (size_t)got);
    }
    free(bytes);
}
