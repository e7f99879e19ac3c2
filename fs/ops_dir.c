/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/ops_private.h"

static struct dir_handle *dir_of(const struct fuse_file_info *fi)
{
    return (struct dir_handle *)(uintptr_t)fi->fh;
}

static int stream_open(struct daemon *daemon, struct dir_handle *dir)
{
    int fd = openat(daemon->drop.folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0) {
        return -errno;
    }
    dir->stream = fdopendir(fd);
    if (dir->stream == NULL) {
        close(fd);
        return -ENOMEM;
    }
    return 0;
}

void dir_destroy(struct daemon *daemon, struct dir_handle *dir)
{
    dir_unregister(daemon, dir);
    tree_listing_close(&dir->listing);
    if (dir->stream != NULL) {
        closedir(dir->stream);
    }
    free(dir);
}

void ops_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct daemon *daemon = daemon_of(req);
    struct dir_handle *dir = calloc(1, sizeof *dir);
    int code = -ENOMEM;

    if (dir != NULL) {
        dir->node = node_of_ino(ino);
        dir->viewer = viewer_of(req);
        code = dir->node.kind == NODE_PROMPTS
                   ? stream_open(daemon, dir)
                   : tree_listing_open(&dir->listing, &daemon->tree, dir->node, &dir->viewer);
    }
    if (code != 0) {
        free(dir);
        fuse_reply_err(req, -code);
        return;
    }
    dir_register(daemon, dir);
    fi->fh = (uint64_t)(uintptr_t)dir;
    if (fuse_reply_open(req, fi) == -ENOENT) {
        dir_destroy(daemon, dir);
    }
}

/* The reply under way: entries are added until one doesn't fit. */
struct page {
    fuse_req_t req;
    char *bytes;
    size_t used, size;
    bool plus;
};

/* An entry that goes away while we look is listed without attributes: the kernel asks later. */
static bool page_add(struct page *page, const struct tree_item *item)
{
    const struct gallery_image *image = item->node.kind == NODE_IMAGE ? &item->image : NULL;
    bool dots = strcmp(item->name, ".") == 0 || strcmp(item->name, "..") == 0;
    struct fuse_entry_param entry = {0};
    size_t size;

    if (page->plus && !dots && entry_fill(page->req, item->node, image, &entry) != 0) {
        entry = (struct fuse_entry_param){0};
    }
    if (entry.ino == 0) {
        entry.attr.st_ino = node_ino(item->node);
        entry.attr.st_mode = node_mode(item->node);
    }
    if (page->plus) {
        size = fuse_add_direntry_plus(page->req, page->bytes + page->used, page->size - page->used,
                                      item->name, &entry, item->next);
    } else {
        size = fuse_add_direntry(page->req, page->bytes + page->used, page->size - page->used,
                                 item->name, &entry.attr, item->next);
    }
    if (size > page->size - page->used) {
        return false;
    }
    page->used += size;
    return true;
}

static void list_tree(struct page *page, struct dir_handle *dir, int64_t offset)
{
    struct tree_item item;

    /* Back at the start (rewinddir): the order of queue/ is that of now. */
    if (offset == 0 && dir->open) {
        tree_listing_close(&dir->listing);
        tree_listing_open(&dir->listing, &daemon_of(page->req)->tree, dir->node, &dir->viewer);
    }
    dir->open = true;
    while (tree_listing_item(&dir->listing, offset, &item) && page_add(page, &item)) {
        offset = item.next;
    }
}

/* Others don't hear the names of files that aren't theirs. */
static bool stream_shows(fuse_req_t req, const char *name)
{
    struct daemon *daemon = daemon_of(req);
    struct viewer viewer = viewer_of(req);
    struct stat st;

    return tree_shows(&daemon->tree, &viewer, daemon->tree.uid) ||
           (fstatat(daemon->drop.folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            st.st_uid == viewer.uid);
}

static bool stream_add(struct page *page, const char *name, off_t next)
{
    struct daemon *daemon = daemon_of(page->req);
    bool dots = strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
    struct fuse_entry_param entry = {0};
    size_t left = page->size - page->used, size;

    if (!dots && !stream_shows(page->req, name)) {
        return true;
    }
    if (page->plus && !dots) {
        if (drop_entry(daemon, name, &entry) != 0) {
            return true; /* gone meanwhile, or no file */
        }
        size =
            fuse_add_direntry_plus(page->req, page->bytes + page->used, left, name, &entry, next);
        if (size > left) {
            drop_forget(&daemon->drop, node_of_ino(entry.ino).id, 1);
        }
    } else {
        entry.attr.st_mode = dots ? S_IFDIR : S_IFREG;
        entry.attr.st_ino = 1;
        size = page->plus ? fuse_add_direntry_plus(page->req, page->bytes + page->used, left, name,
                                                   &entry, next)
                          : fuse_add_direntry(page->req, page->bytes + page->used, left, name,
                                              &entry.attr, next);
    }
    page->used += size <= left ? size : 0;
    return size <= left;
}

static void list_stream(struct page *page, struct dir_handle *dir, off_t offset)
{
    struct dirent *entry;

    if (offset == 0) {
        rewinddir(dir->stream);
    } else if (offset != dir->stream_offset) {
        seekdir(dir->stream, offset);
    }
    dir->stream_offset = offset;
    while ((entry = readdir(dir->stream)) != NULL) {
        if (!stream_add(page, entry->d_name, entry->d_off)) {
            seekdir(dir->stream, dir->stream_offset);
            break;
        }
        dir->stream_offset = entry->d_off;
    }
}

static void list(fuse_req_t req, size_t size, off_t offset, struct dir_handle *dir, bool plus)
{
    struct page page = {.req = req, .bytes = malloc(size), .size = size, .plus = plus};

    if (page.bytes == NULL) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    if (dir->stream != NULL) {
        list_stream(&page, dir, offset);
    } else {
        list_tree(&page, dir, offset);
    }
    fuse_reply_buf(req, page.bytes, page.used);
    free(page.bytes);
}

void ops_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                 struct fuse_file_info *fi)
{
    list(req, size, offset, dir_of(fi), false);
}

void ops_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                     struct fuse_file_info *fi)
{
    list(req, size, offset, dir_of(fi), true);
}

void ops_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    dir_destroy(daemon_of(req), dir_of(fi));
    fuse_reply_err(req, 0);
}
