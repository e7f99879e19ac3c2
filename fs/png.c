/* SPDX-License-Identifier: MIT */
#include "fs/png.h"

#include <errno.h>
#include <fcntl.h>
#include <png.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>
#include <zlib.h>

#include "fs/text.h"

static const char text_key[] = "parameters";

/* Of one text chunk that is read: much more than a prompt may have. */
static const png_alloc_size_t max_text_bytes = 1 << 20;

/* libpng reports by longjmp: everything that must survive one lives here, not in locals. */
struct codec {
    png_structp png;
    png_infop info;
    jmp_buf trap;
    struct error *err;
    int code;         /* what to report */
    struct text file; /* written so far */
    int fd;           /* read from … */
    off_t offset;     /* … here */
    uint8_t *rgb;     /* of width × height pixels */
    png_uint_32 width_px, height_px;
    png_bytep *rows;
    char *parameters; /* read */
};

static void on_error(png_structp png, png_const_charp message)
{
    struct codec *codec = png_get_error_ptr(png);
    if (codec->code == 0) {
        char shown[TEXT_SHOWN_BYTES];
        codec->code = error_set(codec->err, EINVAL, "PNG: %s", text_show(shown, message));
    }
    longjmp(codec->trap, 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png;
    (void)message;
}

static int fail(struct codec *codec, int errnum, const char *text)
{
    codec->code = error_set(codec->err, errnum, "PNG: %s", text);
    return codec->code;
}

static void on_write(png_structp png, png_bytep bytes, size_t length)
{
    struct codec *codec = png_get_io_ptr(png);
    text_add(&codec->file, (const char *)bytes, length);
    if (codec->file.failed) {
        fail(codec, ENOMEM, "out of memory");
        png_error(png, "out of memory");
    }
}

static void on_flush(png_structp png)
{
    (void)png;
}

/* UTF-8 as Latin-1, in place of the text; false (and no change) if there are other characters. */
static bool to_latin1(char *text)
{
    const utf8proc_uint8_t *at = (const utf8proc_uint8_t *)text;
    utf8proc_int32_t code;
    for (; *at != '\0'; at += utf8proc_iterate(at, -1, &code)) {
        if (utf8proc_iterate(at, -1, &code) <= 0 || code > 0xff) {
            return false;
        }
    }
    char *to = text;
    for (at = (const utf8proc_uint8_t *)text; *at != '\0';) {
        at += utf8proc_iterate(at, -1, &code);
        *to++ = (char)code;
    }
    *to = '\0';
    return true;
}

static char *from_latin1(const char *latin1, size_t length)
{
    struct text text = {0};
    for (size_t i = 0; i < length; i++) {
        utf8proc_uint8_t bytes[4];
        utf8proc_ssize_t n = utf8proc_encode_char((unsigned char)latin1[i], bytes);
        text_add(&text, (const char *)bytes, (size_t)n);
    }
    return text_take(&text);
}

static int encode(struct codec *codec, const struct png_image *image, char *parameters)
{
    if (setjmp(codec->trap) != 0) {
        return codec->code;
    }
    png_set_write_fn(codec->png, codec, on_write, on_flush);
    /* Painted pictures hardly ever repeat bytes exactly: run lengths after the Paeth filter give
     * files as small as zlib's level 6 does, in a fifth of the time. */
    png_set_compression_level(codec->png, 1);
    png_set_compression_strategy(codec->png, Z_RLE);
    png_set_filter(codec->png, PNG_FILTER_TYPE_BASE, PNG_FILTER_PAETH);
    png_set_IHDR(codec->png, codec->info, (png_uint_32)image->width_px,
                 (png_uint_32)image->height_px, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (parameters != NULL) {
        char key[sizeof text_key];
        char none[1] = "";
        memcpy(key, text_key, sizeof key);
        bool latin1 = to_latin1(parameters);
        png_text text = {
            .compression = latin1 ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE,
            .key = key,
            .text = parameters,
            .text_length = latin1 ? strlen(parameters) : 0,
            .itxt_length = latin1 ? 0 : strlen(parameters),
            .lang = none,
            .lang_key = none,
        };
        png_set_text(codec->png, codec->info, &text, 1);
    }
    png_write_info(codec->png, codec->info);
    for (int y = 0; y < image->height_px; y++) {
        png_write_row(codec->png, image->rgb + (size_t)y * (size_t)image->width_px * 3);
    }
    png_write_end(codec->png, NULL);
    return 0;
}

static int check_image(const struct png_image *image, struct error *err)
{
    struct error inner = {0};
    if (image->width_px < 1 || image->height_px < 1 || image->width_px > PNG_MAX_SIDE_PX ||
        image->height_px > PNG_MAX_SIDE_PX ||
        (int64_t)image->width_px * image->height_px > PNG_MAX_PIXELS) {
        return error_set(err, EINVAL, "PNG: an image of %dx%d pixels can't be written",
                         image->width_px, image->height_px);
    }
    if (image->parameters != NULL &&
        text_validate(image->parameters, strlen(image->parameters), &inner) != 0) {
        return error_set(err, EINVAL, "PNG: parameters: %s", inner.text);
    }
    return 0;
}

int png_encode(const struct png_image *image, uint8_t **bytes, size_t *length, struct error *err)
{
    struct codec codec = {.err = err};
    char *parameters = NULL;
    int rc = check_image(image, err);
    if (rc != 0) {
        return rc;
    }
    if (image->parameters != NULL) {
        parameters = strdup(image->parameters);
    }
    codec.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &codec, on_error, on_warning);
    codec.info = codec.png == NULL ? NULL : png_create_info_struct(codec.png);
    if (codec.info == NULL || (image->parameters != NULL && parameters == NULL)) {
        rc = fail(&codec, ENOMEM, "out of memory");
    } else {
        rc = encode(&codec, image, parameters);
    }
    png_destroy_write_struct(&codec.png, &codec.info);
    free(parameters);
    if (rc != 0) {
        free(codec.file.bytes);
        return rc;
    }
    *length = codec.file.length;
    *bytes = (uint8_t *)codec.file.bytes;
    return 0;
}

/* ---- Writing files ---- */

static int write_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, length);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        bytes += n;
        length -= (size_t)n;
    }
    return 0;
}

static int disk_error(struct error *err, const char *name, const char *what, int code)
{
    return error_set(err, -code, "%s: can't %s: %s", name, what, strerror(-code));
}

static int write_temporary(int folder_fd, const char *temporary, const char *name,
                           const uint8_t *bytes, size_t length, struct error *err)
{
    int fd = openat(folder_fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    if (fd < 0) {
        return disk_error(err, name, "create a temporary file for it", -errno);
    }
    int code = write_all(fd, bytes, length);
    if (code == 0 && fsync(fd) != 0) {
        code = -errno;
    }
    if (close(fd) != 0 && code == 0) {
        code = -errno;
    }
    return code == 0 ? 0 : disk_error(err, name, "write it", code);
}

int png_write_bytes(int folder_fd, const char *name, const uint8_t *bytes, size_t length,
                    struct error *err)
{
    static atomic_uint serial;
    char temporary[64];
    snprintf(temporary, sizeof temporary, PNG_TEMPORARY_PREFIX "%ld-%u", (long)getpid(),
             atomic_fetch_add(&serial, 1));
    int rc = write_temporary(folder_fd, temporary, name, bytes, length, err);
    if (rc == 0 && renameat(folder_fd, temporary, folder_fd, name) != 0) {
        rc = disk_error(err, name, "rename the finished file", -errno);
    }
    if (rc != 0) {
        unlinkat(folder_fd, temporary, 0);
        return rc;
    }
    if (fsync(folder_fd) != 0) {
        return disk_error(err, name, "sync its folder", -errno);
    }
    return 0;
}

int png_write_file(int folder_fd, const char *name, const struct png_image *image,
                   struct error *err)
{
    uint8_t *bytes;
    size_t length;
    int rc = png_encode(image, &bytes, &length, err);
    if (rc == 0) {
        rc = png_write_bytes(folder_fd, name, bytes, length, err);
        free(bytes);
    }
    return rc;
}

/* ---- Reading ---- */

static void on_read(png_structp png, png_bytep bytes, size_t length)
{
    struct codec *codec = png_get_io_ptr(png);
    while (length > 0) {
        ssize_t n = pread(codec->fd, bytes, length, codec->offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            int errnum = errno;
            fail(codec, errnum, strerror(errnum));
        }
        if (n <= 0) {
            png_error(png, "the file ends too early");
        }
        bytes += n;
        length -= (size_t)n;
        codec->offset += n;
    }
}

/* Only pixels and text are read, and neither of a size that a hostile file chooses. Too large a
 * chunk is one of those errors that libpng forgives unless told otherwise. */
static void limit_reader(png_structp png)
{
    static const png_byte texts[] = "tEXt\0iTXt\0zTXt";
    png_set_user_limits(png, PNG_MAX_SIDE_PX, PNG_MAX_SIDE_PX);
    png_set_chunk_malloc_max(png, max_text_bytes);
    png_set_benign_errors(png, 0);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_AS_DEFAULT, texts, 3);
}

/* Calls `body` with the header read; libpng's errors end it. */
static int with_reader(struct codec *codec, int (*body)(struct codec *codec))
{
    int rc;
    codec->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, codec, on_error, on_warning);
    codec->info = codec->png == NULL ? NULL : png_create_info_struct(codec->png);
    if (codec->info == NULL) {
        rc = fail(codec, ENOMEM, "out of memory");
    } else if (setjmp(codec->trap) != 0) {
        rc = codec->code;
    } else {
        png_set_read_fn(codec->png, codec, on_read);
        limit_reader(codec->png);
        png_read_info(codec->png, codec->info);
        rc = body(codec);
    }
    png_destroy_read_struct(&codec->png, &codec->info, NULL);
    free(codec->rows);
    return rc;
}

/* Decodes everything into codec->rgb. */
static int read_rows(struct codec *codec)
{
    png_uint_32 width = codec->width_px = png_get_image_width(codec->png, codec->info);
    png_uint_32 height = codec->height_px = png_get_image_height(codec->png, codec->info);
    if ((uint64_t)width * height > PNG_MAX_PIXELS) {
        return fail(codec, EINVAL, "too many pixels");
    }
    png_set_expand(codec->png);
    png_set_scale_16(codec->png);
    png_set_gray_to_rgb(codec->png);
    png_set_strip_alpha(codec->png);
    png_read_update_info(codec->png, codec->info);
    if (png_get_rowbytes(codec->png, codec->info) != (size_t)width * 3) {
        return fail(codec, EINVAL, "an odd kind of pixels");
    }
    codec->rgb = malloc((size_t)width * height * 3);
    codec->rows = malloc(height * sizeof *codec->rows);
    if (codec->rgb == NULL || codec->rows == NULL) {
        return fail(codec, ENOMEM, "out of memory");
    }
    for (png_uint_32 y = 0; y < height; y++) {
        codec->rows[y] = codec->rgb + (size_t)y * width * 3;
    }
    png_read_image(codec->png, codec->rows);
    png_read_end(codec->png, codec->info);
    return 0;
}

static const png_text *find_text(struct codec *codec)
{
    png_textp texts;
    int count = 0;
    png_get_text(codec->png, codec->info, &texts, &count);
    for (int i = 0; i < count; i++) {
        if (strcmp(texts[i].key, text_key) == 0) {
            return &texts[i];
        }
    }
    return NULL;
}

static int read_text(struct codec *codec)
{
    const png_text *text = find_text(codec);
    if (text == NULL) {
        /* Some programs write it after the pixels. */
        int rc = read_rows(codec);
        if (rc != 0) {
            return rc;
        }
        text = find_text(codec);
    }
    if (text == NULL) {
        return fail(codec, ENODATA, "no \"parameters\" text in it");
    }
    bool utf8 = text->compression >= PNG_ITXT_COMPRESSION_NONE;
    codec->parameters = utf8 ? strdup(text->text) : from_latin1(text->text, text->text_length);
    return codec->parameters == NULL ? fail(codec, ENOMEM, "out of memory") : 0;
}

int png_read_parameters(int fd, char **parameters, struct error *err)
{
    struct codec codec = {.err = err, .fd = fd};
    int rc = with_reader(&codec, read_text);
    free(codec.rgb);
    if (rc == 0) {
        *parameters = codec.parameters;
    }
    return rc;
}

int png_read_pixels(int fd, uint8_t **rgb, int *width_px, int *height_px, struct error *err)
{
    struct codec codec = {.err = err, .fd = fd};
    int rc = with_reader(&codec, read_rows);
    if (rc != 0) {
        free(codec.rgb);
        return rc;
    }
    *rgb = codec.rgb;
    *width_px = (int)codec.width_px;
    *height_px = (int)codec.height_px;
    return 0;
}
