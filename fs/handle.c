/* SPDX-License-Identifier: MIT */
#include "fs/handle.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "fs/content.h"
#include "fs/ops_private.h"

struct handle *handle_create(fuse_req_t req, struct node node, const struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    struct handle *handle = calloc(1, sizeof *handle);

    if (handle == NULL) {
        return NULL;
    }
    handle->node = node;
    handle->opener = viewer_of(req);
    handle->writable = (fi->flags & O_ACCMODE) != O_RDONLY;
    handle->fd = -1;
    handle->reply_base = -1;
    pthread_mutex_lock(&daemon->tree.lock);
    handle->number = ++daemon->last_handle;
    handle->place = &daemon->handles;
    handle->next = daemon->handles;
    if (handle->next != NULL) {
        handle->next->place = &handle->next;
    }
    daemon->handles = handle;
    pthread_mutex_unlock(&daemon->tree.lock);
    ((struct fuse_file_info *)fi)->fh = (uint64_t)(uintptr_t)handle;
    return handle;
}

void handle_destroy(struct daemon *daemon, struct handle *handle)
{
    if (handle == NULL) {
        return;
    }
    pthread_mutex_lock(&daemon->tree.lock);
    *handle->place = handle->next;
    if (handle->next != NULL) {
        handle->next->place = handle->place;
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    if (handle->poll != NULL) {
        fuse_pollhandle_destroy(handle->poll);
    }
    if (handle->fd >= 0) {
        close(handle->fd);
    }
    content_finish(&handle->content);
    content_finish(&handle->reply);
    free(handle);
}

void dir_register(struct daemon *daemon, struct dir_handle *dir)
{
    pthread_mutex_lock(&daemon->tree.lock);
    dir->place = &daemon->dirs;
    dir->next = daemon->dirs;
    if (dir->next != NULL) {
        dir->next->place = &dir->next;
    }
    daemon->dirs = dir;
    pthread_mutex_unlock(&daemon->tree.lock);
}

void dir_unregister(struct daemon *daemon, struct dir_handle *dir)
{
    pthread_mutex_lock(&daemon->tree.lock);
    *dir->place = dir->next;
    if (dir->next != NULL) {
        dir->next->place = dir->place;
    }
    pthread_mutex_unlock(&daemon->tree.lock);
}

bool handle_recent(struct daemon *daemon, struct node node, uid_t uid, off_t *size,
                   int64_t *changed_ns)
{
    int64_t newest = clock_ns() - 1000000000;
    bool found = false;

    pthread_mutex_lock(&daemon->tree.lock);
    for (struct handle *each = daemon->handles; each != NULL; each = each->next) {
        if (each->node.kind == node.kind && each->node.part == node.part &&
            each->node.id == node.id && each->opener.uid == uid && each->snapshot_ns > newest) {
            newest = each->snapshot_ns;
            *size = (off_t)each->content.length;
            *changed_ns = each->changed_ns;
            found = true;
        }
    }
    pthread_mutex_unlock(&daemon->tree.lock);
    return found;
}

void handles_destroy(struct daemon *daemon)
{
    while (daemon->handles != NULL) {
        handle_destroy(daemon, daemon->handles);
    }
    while (daemon->dirs != NULL) {
        dir_destroy(daemon, daemon->dirs);
    }
}
