/* SPDX-License-Identifier: MIT */
#include "fs/config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/config_ini.h"
#include "fs/config_key.h"
#include "fs/config_plan.h"
#include "fs/text.h"

static void config_default(struct config *config)
{
    *config = (struct config){
        .action = CONFIG_MOUNT,
        .defaults = prompt_values_default(),
        .queue_limit = 10000,
        .uid = getuid(),
        .gid = getgid(),
        .umask = 022,
        .log_level = LOG_LEVEL_INFO,
    };
}

void config_finish(struct config *config)
{
    char **strings[] = {&config->mountpoint, &config->source,     &config->model,
                        &config->backend,    &config->module_dir, &config->state_dir,
                        &config->trace_path};

    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        free(*strings[i]);
        *strings[i] = NULL;
    }
}

/* ---- the command line ---- */

struct arguments {
    const char *config_file;
    const char *operands[2]; /* [SOURCE] MOUNTPOINT */
    int operand_count;
};

/* Words that mount(8) passes on from /etc/fstab, and what libfuse is told anyway. */
static bool mount_word(const char *word)
{
    static const char *const words[] = {"rw",          "suid",       "nosuid",
                                        "dev",         "nodev",      "auto",
                                        "noauto",      "nofail",     "user",
                                        "nouser",      "users",      "owner",
                                        "group",       "_netdev",    "defaults",
                                        "atime",       "noatime",    "relatime",
                                        "norelatime",  "diratime",   "nodiratime",
                                        "strictatime", "lazytime",   "nolazytime",
                                        "async",       "sync",       "dirsync",
                                        "iversion",    "noiversion", "mand",
                                        "nomand",      "silent",     "default_permissions"};

    if (strncmp(word, "x-", 2) == 0 || strncmp(word, "user=", 5) == 0 ||
        strncmp(word, "comment=", 8) == 0 || strncmp(word, "fsname=", 7) == 0 ||
        strncmp(word, "subtype=", 8) == 0)
        return true;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(word, words[i]) == 0)
            return true;
    return false;
}

/* One `key=value` or `key`, as -o and the long options have it. */
static int apply_word(struct config *config, const char *option, char *word, struct error *err)
{
    char *equals = strchr(word, '=');
    struct error inner;

    if (equals != NULL)
        *equals = '\0';
    if (config_key_set(config, word, equals != NULL ? equals + 1 : NULL, &inner) == 0) {
        config->given |= config_key_bits(word);
        return 0;
    }
    return error_set(err, -inner.code, "%s%s", option, inner.text);
}

static int apply_mount_options(struct config *config, const char *list, struct error *err)
{
    char *copy = strdup(list), *rest = copy, *word;
    int result = 0;

    if (copy == NULL)
        return error_set(err, ENOMEM, "out of memory");
    while (result == 0 && (word = strsep(&rest, ",")) != NULL) {
        if (word[0] == '\0' || mount_word(word))
            continue;
        if (strcmp(word, "noexec") == 0)
            config->noexec = true;
        else if (strcmp(word, "exec") == 0)
            config->noexec = false;
        else if (strcmp(word, "ro") == 0)
            result = error_set(err, EINVAL, "-o ro: prompts are written; mount it rw");
        else if (strcmp(word, "remount") == 0)
            result =
                error_set(err, EINVAL, "-o remount: unmount it first, or write to its control/");
        else
            result = apply_word(config, "-o ", word, err);
    }
    free(copy);
    return result;
}

/* A --option; its value may stand in the next argument, whose index is then passed over. */
static int apply_long(struct config *config, int argc, char *const argv[], int *i,
                      struct error *err)
{
    const char *name = argv[*i] + 2;
    bool inside = strchr(name, '=') != NULL;
    char *word = NULL;
    int length, result;

    if (!inside && !config_key_is_flag(name)) {
        if (*i + 1 >= argc && config_key_known(name))
            return error_set(err, EINVAL, "--%.60s: its value is missing", name);
        length = asprintf(&word, "%s=%s", name, *i + 1 < argc ? argv[++*i] : "");
    } else {
        length = asprintf(&word, "%s", name);
    }
    if (length < 0)
        return error_set(err, ENOMEM, "out of memory");
    result = apply_word(config, "--", word, err);
    free(word);
    return result;
}

/* What must be known before the ini files are read. Returns the index after the option's value, or
 * 0 if argv[i] is none of these. */
static int early_option(struct config *config, struct arguments *found, int argc,
                        char *const argv[], int i)
{
    const char *word = argv[i];

    if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0)
        config->action = CONFIG_HELP;
    else if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0)
        config->action = CONFIG_VERSION;
    else if (strcmp(word, "--plan") == 0)
        config->action = config->action == CONFIG_MOUNT ? CONFIG_PLAN : config->action;
    else if (strncmp(word, "--config=", 9) == 0)
        found->config_file = word + 9;
    else if ((strcmp(word, "--config") == 0 || strcmp(word, "-c") == 0) && i + 1 < argc) {
        found->config_file = argv[i + 1];
        return i + 2;
    } else
        return 0;
    return i + 1;
}

static int apply_option(struct config *config, struct arguments *found, int argc,
                        char *const argv[], int *i, struct error *err)
{
    const char *word = argv[*i];
    int early = early_option(config, found, argc, argv, *i);

    if (early != 0) {
        *i = early - 1;
        return 0;
    }
    if (strcmp(word, "-f") == 0) {
        config->foreground = true;
        return 0;
    }
    if (strcmp(word, "-o") == 0) {
        if (*i + 1 >= argc)
            return error_set(err, EINVAL, "-o: its options are missing");
        return apply_mount_options(config, argv[++*i], err);
    }
    if (strncmp(word, "-o", 2) == 0)
        return apply_mount_options(config, word + 2, err);
    if (config->action == CONFIG_PLAN && strncmp(word, "--", 2) == 0) {
        int result = config_plan_option(&config->plan, argc, argv, i, err);

        if (result != 0)
            return result < 0 ? result : 0;
    }
    if (config_plan_has(word))
        return error_set(err, EINVAL, "%.*s: only --plan takes it", (int)strcspn(word, "="), word);
    if (strncmp(word, "--", 2) == 0 && word[2] != '\0')
        return apply_long(config, argc, argv, i, err);
    return error_set(err, EINVAL, "%.60s: unknown option; see fluxfs --help", word);
}

static int apply_arguments(struct config *config, struct arguments *found, int argc,
                           char *const argv[], struct error *err)
{
    bool options = true;

    for (int i = 1; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && argv[i][0] == '-' && argv[i][1] != '\0') {
            if (apply_option(config, found, argc, argv, &i, err) != 0)
                return err->code;
        } else if (found->operand_count == 2) {
            return error_set(err, EINVAL, "%.100s: only SOURCE and MOUNTPOINT were expected",
                             argv[i]);
        } else {
            found->operands[found->operand_count++] = argv[i];
        }
    }
    if (config->action == CONFIG_PLAN && found->operand_count > 0)
        return error_set(err, EINVAL, "%.100s: --plan mounts nothing; --model names the model",
                         found->operands[0]);
    if (config->action == CONFIG_MOUNT && found->operand_count == 0)
        return error_set(err, EINVAL,
                         "no mountpoint; usage: fluxfs [OPTIONS] MOUNTPOINT "
                         "(see fluxfs --help)");
    return 0;
}

/* ---- what follows from the rest ---- */

/* Shells leave the ~ of -o model=~/x as it is, and in an ini file there is no shell. */
static bool is_of_home(const char *path)
{
    return strncmp(path, "~/", 2) == 0;
}

static char *absolute(const char *path)
{
    const char *home = getenv("HOME");
    bool of_home = home != NULL && is_of_home(path);
    char *base, *joined = NULL;

    if (path[0] == '/')
        return strdup(path);
    base = of_home ? strdup(home) : get_current_dir_name();
    path += of_home ? 2 : 0;
    while (strncmp(path, "./", 2) == 0)
        path += 2;
    if (base != NULL && asprintf(&joined, "%s/%s", base, path) < 0)
        joined = NULL;
    free(base);
    return joined;
}

static int make_absolute(char **path, struct error *err)
{
    const char *home = getenv("HOME");
    char *full;

    if (*path == NULL)
        return 0;
    if (is_of_home(*path) && (home == NULL || home[0] != '/'))
        return error_set(err, EINVAL, "%.100s: HOME isn't set: write the whole path", *path);
    full = absolute(*path);
    if (full == NULL)
        return error_set(err, ENOMEM, "%.100s: can't be made an absolute path", *path);
    for (size_t length = strlen(full); length > 1 && full[length - 1] == '/'; length--)
        full[length - 1] = '\0';
    free(*path);
    *path = full;
    return 0;
}

/* A path with ".", ".." or a symbolic link is looked up by libfuse once it is mounted, but not yet
 * served: that never ends. Of one that leads nowhere mount_prepare says why. */
static void make_plain(char **path)
{
    char *real = *path != NULL ? realpath(*path, NULL) : NULL;

    if (real != NULL) {
        free(*path);
        *path = real;
    }
}

/* A folder of its own for each mountpoint: /mnt/flux keeps its state in …/fluxfs/mnt-flux. */
static char *default_state_dir(const char *mountpoint, struct error *err)
{
    const char *base = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *instance = strdup(mountpoint + strspn(mountpoint, "/")), *path = NULL;
    bool homeless = false;
    int length = -1;

    if (instance == NULL) {
        error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    for (char *c = instance; *c != '\0'; c++)
        if (*c == '/')
            *c = '-';
    if (instance[0] == '\0' || instance[0] == '.')
        instance[0] = '_';
    if (getuid() == 0)
        length = asprintf(&path, "/var/lib/fluxfs/%s", instance);
    else if (base != NULL && base[0] == '/')
        length = asprintf(&path, "%s/fluxfs/%s", base, instance);
    else if (home != NULL && home[0] == '/')
        length = asprintf(&path, "%s/.local/state/fluxfs/%s", home, instance);
    else
        homeless = true;
    free(instance);
    if (homeless)
        error_set(err, EINVAL, "HOME isn't set: say with --state-dir where queue and images go");
    else if (length < 0)
        error_set(err, ENOMEM, "out of memory");
    return length < 0 ? NULL : path;
}

/* The first of the candidates that holds `file`; candidates beginning with '/' stand for
 * themselves, others are relative to the folder of this program. NULL if none does. */
static char *find_beside(const char *const *candidates, const char *file)
{
    char exe[4096], path[8192];
    ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);

    exe[length > 0 ? length : 0] = '\0';
    *(strrchr(exe, '/') != NULL ? strrchr(exe, '/') : exe) = '\0';
    for (; *candidates != NULL; candidates++) {
        char *real;

        if ((*candidates)[0] == '/')
            snprintf(path, sizeof path, "%s/%s", *candidates, file);
        else
            snprintf(path, sizeof path, "%s/%s/%s", exe, *candidates, file);
        if (access(path, R_OK) != 0)
            continue;
        path[strlen(path) - strlen(file) - 1] = '\0';
        real = realpath(path, NULL);
        if (real != NULL)
            return real;
    }
    return NULL;
}

static int complete(struct config *config, const struct arguments *found, struct error *err)
{
    /* Installed beside us, in the source tree (from a build folder in it), where it was to be. */
    static const char *const models[] = {FLUXFS_DATA_BESIDE "/mini", "../../etc/mini",
                                         FLUXFS_DATA_DIR "/mini", NULL};
    static const char *const modules[] = {FLUXFS_MODULE_BESIDE, "../engine/cuda", FLUXFS_MODULE_DIR,
                                          NULL};
    const char *source = found->operand_count == 2 ? found->operands[0] : NULL;
    bool named = source != NULL && strcmp(source, "fluxfs") != 0 && strcmp(source, "none") != 0;
    bool mounts = config->action == CONFIG_MOUNT;

    if (mounts) {
        assert(found->operand_count > 0);
        config->mountpoint = strdup(found->operands[found->operand_count - 1]);
    }
    if (named) {
        free(config->model);
        config->model = strdup(source);
        config->given |= config_key_bits("model");
    }
    if (make_absolute(&config->mountpoint, err) != 0 || make_absolute(&config->model, err) != 0 ||
        make_absolute(&config->module_dir, err) != 0 ||
        make_absolute(&config->state_dir, err) != 0 || make_absolute(&config->trace_path, err) != 0)
        return err->code;
    make_plain(&config->mountpoint);
    /* mount -a knows by it what is mounted already. */
    config->source = strdup(source != NULL && !named ? source
                            : config->model != NULL  ? config->model
                                                     : "fluxfs");
    if (config->model == NULL)
        config->model = find_beside(models, "model_index.json");
    if (config->model == NULL)
        return error_set(err, ENOENT,
                         "the model that comes with fluxfs is not where it was "
                         "installed (" FLUXFS_DATA_DIR "/mini); set `model`");
    if (config->module_dir == NULL)
        config->module_dir = find_beside(modules, "fluxfs-cuda.so");
    if (config->backend == NULL)
        config->backend = strdup("auto");
    if ((mounts && config->mountpoint == NULL) || config->source == NULL || config->backend == NULL)
        return error_set(err, ENOMEM, "out of memory");
    if (mounts && config->state_dir == NULL)
        config->state_dir = default_state_dir(config->mountpoint, err);
    if (mounts && config->state_dir == NULL)
        return err->code;
    return 0;
}

int config_load(struct config *out, int argc, char *const argv[], struct error *err)
{
    struct arguments early = {0}, found = {0};
    struct config config;

    config_default(&config);
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        early_option(&config, &early, argc, argv, i);
    if (config.action == CONFIG_HELP || config.action == CONFIG_VERSION) {
        *out = config;
        return 0;
    }
    if (config_ini_load(&config, early.config_file, err) != 0 ||
        apply_arguments(&config, &found, argc, argv, err) != 0 ||
        complete(&config, &found, err) != 0) {
        config_finish(&config);
        return err->code;
    }
    *out = config;
    return 0;
}

void config_print_help(FILE *out)
{
    fputs(
        "usage: fluxfs [OPTIONS] MOUNTPOINT\n"
        "       fluxfs [OPTIONS] SOURCE MOUNTPOINT      as mount(8) does; SOURCE is the model\n"
        "       fluxfs --plan [--vram 24G --link 25 --tflops 165] [OPTIONS]\n"
        "\n"
        "Mounts a directory that paints: echo \"a red fox\" > MOUNTPOINT/new\n"
        "\n"
        "  -f, --foreground      stay in the foreground, log to standard error\n"
        "  -c, --config FILE     read this instead of " FLUXFS_SYSTEM_FILE " and\n"
        "                        ~/.config/fluxfs/fluxfs.ini\n"
        "  -o KEY=VALUE,…        settings, as below; mount(8)'s own words are ignored\n"
        "  --plan                don't mount: print what stays in memory and what passes through\n"
        "                        it, and how long a picture takes, on this machine's device or\n"
        "                        on one of so much memory (--vram 24G), so many GB/s from the "
        "host\n"
        "                        (--link 25), 10^12 operations a second (--tflops 165) and GB/s\n"
        "                        of its own memory (--bandwidth 1000); --jobs N: so many wait\n"
        "  -h, --help            this text\n"
        "  -V, --version         the version\n"
        "\n"
        "Settings, as --KEY VALUE (with - for _), in -o, or in an ini file under [fluxfs]:\n",
        out);
    config_keys_print(out);
    fputs("\nUnmount with: fusermount3 -u MOUNTPOINT\n", out);
}

void config_print_version(FILE *out)
{
    fprintf(out, "fluxfs %s\n", FLUXFS_VERSION);
}
