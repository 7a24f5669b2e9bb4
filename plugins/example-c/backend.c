/*
 * `cfolder`: a whole backend in C. Each key is a file of one folder.
 *
 * The folder holds
 *
 *   lock        locked (flock) by whoever writes; never renamed, never removed
 *   next        locked by whoever waits to write next; the same
 *   counter     the last version that was given out, 8 bytes
 *   H.key       one file for each key, H its hash: a header, the key, the value
 *   *.new       what is being written, left by a process that was killed and written over later
 *
 * A write holds the lock, checks the expectation, writes a new file, syncs it, renames it over the
 * old one and syncs the folder: readers see the one or the other (C1), and it survives power loss
 * (C2). The counter is written and synced before the version is used, so none is used twice, not
 * even after a crash (C5). Two keys of one hash would be an error, not a mix-up: the hash has 128
 * bits, and the file says which key it is of.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "oxiflow_backend.h"

#define EXPORT __attribute__((visibility("default")))

static const char DESCRIPTION[] =
    "{\"name\": \"cfolder\", \"version\": \"1.0.0\", \"description\": \"Files in a folder, in C\","
    " \"config_schema\": {\"type\": \"object\", \"additionalProperties\": false, \"properties\": {"
    "\"folder\": {\"type\": \"string\", \"description\": \"where the files lie\","
    " \"default\": \"cfolder\"}}}}";

#define PROMISES (OXIFLOW_CAPABILITY_DURABLE | OXIFLOW_CAPABILITY_MULTI_PROCESS)

typedef struct store {
    int folder;
} store;

/* What a file begins with; the key and the value follow. */
typedef struct header {
    char magic[8];
    uint64_t version, key_len, value_len;
} header;

static const char MAGIC[8] = "cfolder1";

/* A file name: the hash in hexadecimal, and `.key`. */
typedef struct name {
    char text[40];
} name;

/* What a key holds; `value` belongs to whoever read it. */
typedef struct record {
    uint64_t version;
    uint8_t *key, *value;
    size_t key_len, value_len;
} record;

/* ---- Answers ---------------------------------------------------------------------------------- */

static oxiflow_slice slice(const void *ptr, size_t len)
{
    oxiflow_slice made = {ptr, len};
    return made;
}

static int32_t fail(const oxiflow_reply *reply, int32_t status, const char *text)
{
    reply->message(reply->context, slice(text, strlen(text)));
    return status;
}

/* A failed system call that changed nothing. */
static int32_t fail_errno(const oxiflow_reply *reply, const char *what)
{
    int code = errno;
    char text[160];
    snprintf(text, sizeof text, "cannot %s: %s", what, strerror(code));
    int32_t status = code == ENOSPC || code == EDQUOT                   ? OXIFLOW_NO_SPACE
                     : code == EACCES || code == EPERM || code == EROFS ? OXIFLOW_DENIED
                                                                        : OXIFLOW_UNAVAILABLE;
    return fail(reply, status, text);
}

/* Big-endian, so that the bytes of a version read like the number. */
static oxiflow_version version_of(uint64_t number)
{
    oxiflow_version version = {8, {0}};
    for (int i = 0; i < 8; i++)
        version.bytes[i] = (uint8_t)(number >> (56 - 8 * i));
    return version;
}

/* ---- Deadlines (C13) -------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* When the call must be over, on the clock of `now_ns`. */
static uint64_t deadline_of(const oxiflow_call *call)
{
    uint64_t now = now_ns();
    if (call == NULL || call->timeout_ns == 0 || call->timeout_ns > UINT64_MAX - now)
        return UINT64_MAX;
    return now + call->timeout_ns;
}

static int32_t too_late(const oxiflow_reply *reply)
{
    return fail(reply, OXIFLOW_TIMEOUT, "the deadline passed before anything was changed");
}

/* ---- Files ------------------------------------------------------------------------------------ */

static uint64_t fnv(uint64_t hash, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    return hash ^ hash >> 29;
}

/* Hashing keeps every key inside the folder and every name short (C8). */
static name name_of(oxiflow_slice key)
{
    name made;
    uint64_t first = fnv(UINT64_C(0xcbf29ce484222325), key.ptr, key.len);
    uint64_t second = fnv(first * UINT64_C(0x9e3779b97f4a7c15) + key.len, key.ptr, key.len);
    snprintf(made.text, sizeof made.text, "%016llx%016llx.key", (unsigned long long)first,
             (unsigned long long)second);
    return made;
}

static int read_all(int file, void *into, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t got = read(file, (uint8_t *)into + done, len - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        done += (size_t)got;
    }
    return 0;
}

static int write_all(int file, const void *from, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t put = write(file, (const uint8_t *)from + done, len - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -1;
        done += (size_t)put;
    }
    return 0;
}

static void discard(record *read)
{
    free(read->key);
    free(read->value);
    read->key = read->value = NULL;
}

/* Reads a file of the folder; OXIFLOW_NOT_FOUND when there is none. Without `with_value` the value
 * stays where it is. */
static int32_t read_record(const store *store, const char *file_name, int with_value, record *out,
                           const oxiflow_reply *reply)
{
    memset(out, 0, sizeof *out);
    int file = openat(store->folder, file_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0)
        return errno == ENOENT ? OXIFLOW_NOT_FOUND : fail_errno(reply, "open a key's file");
    header head;
    struct stat status;
    int32_t result = OXIFLOW_OK;
    if (fstat(file, &status) != 0 || read_all(file, &head, sizeof head) != 0 ||
        memcmp(head.magic, MAGIC, sizeof MAGIC) != 0 || head.key_len > OXIFLOW_MAX_KEY_BYTES ||
        head.value_len > OXIFLOW_MIN_MAX_VALUE_BYTES ||
        (uint64_t)status.st_size != sizeof head + head.key_len + head.value_len) {
        result = fail(reply, OXIFLOW_CORRUPT, "a key's file is damaged");
    } else {
        out->version = head.version;
        out->key_len = (size_t)head.key_len;
        out->value_len = (size_t)head.value_len;
        out->key = malloc(out->key_len + 1);
        out->value = with_value ? malloc(out->value_len + 1) : NULL;
        if (out->key == NULL || (with_value && out->value == NULL))
            result = fail(reply, OXIFLOW_INTERNAL, "out of memory");
        else if (read_all(file, out->key, out->key_len) != 0 ||
                 (with_value && read_all(file, out->value, out->value_len) != 0))
            result = fail_errno(reply, "read a key's file");
    }
    close(file);
    if (result != OXIFLOW_OK)
        discard(out);
    return result;
}

/* Replaces a file of the folder by these parts, durably. After an error before the rename it is as
 * it was; after it nobody knows (C4). */
static int32_t replace(const store *store, const char *file_name, const oxiflow_slice *parts,
                       int count, uint64_t deadline, const oxiflow_reply *reply)
{
    char new_name[64];
    snprintf(new_name, sizeof new_name, "%s.new", file_name);
    int file = openat(store->folder, new_name,
                      O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0)
        return fail_errno(reply, "make a file");
    int failed = 0;
    for (int i = 0; i < count && !failed; i++)
        failed = write_all(file, parts[i].ptr, parts[i].len);
    failed = failed || fsync(file) != 0;
    int32_t result = failed ? fail_errno(reply, "write a file") : OXIFLOW_OK;
    close(file);
    if (result == OXIFLOW_OK && now_ns() >= deadline)
        result = too_late(reply);
    if (result == OXIFLOW_OK &&
        renameat(store->folder, new_name, store->folder, file_name) != 0)
        result = fail_errno(reply, "rename a file");
    if (result != OXIFLOW_OK) {
        unlinkat(store->folder, new_name, 0);
        return result;
    }
    if (fsync(store->folder) != 0)
        return fail(reply, OXIFLOW_OUTCOME_UNKNOWN, "cannot sync the folder after a rename");
    return OXIFLOW_OK;
}

/* The next version, on disk before it is used. */
static int32_t next_version(const store *store, uint64_t *next, const oxiflow_reply *reply)
{
    uint64_t last = 0;
    int file = openat(store->folder, "counter", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0 && errno != ENOENT)
        return fail_errno(reply, "open the counter");
    if (file >= 0) {
        int failed = read_all(file, &last, sizeof last);
        close(file);
        if (failed)
            return fail(reply, OXIFLOW_CORRUPT, "the counter of versions is damaged");
    }
    *next = last + 1;
    oxiflow_slice part = slice(next, sizeof *next);
    /* A version that is skipped does no harm, so here an unknown outcome is a plain failure. */
    int32_t status = replace(store, "counter", &part, 1, UINT64_MAX, reply);
    return status == OXIFLOW_OUTCOME_UNKNOWN ? OXIFLOW_UNAVAILABLE : status;
}

/* ---- Locks (C3, C6) --------------------------------------------------------------------------- */

/* Opens and locks a file: a descriptor of its own, so that threads exclude each other as well. */
static int32_t lock_file(const store *store, const char *name, uint64_t deadline, int *lock,
                         const oxiflow_reply *reply)
{
    *lock = openat(store->folder, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*lock < 0)
        return fail_errno(reply, "open the lock");
    while (flock(*lock, LOCK_EX | LOCK_NB) != 0) {
        int32_t status = OXIFLOW_OK;
        if (errno != EWOULDBLOCK && errno != EINTR)
            status = fail_errno(reply, "lock");
        else if (now_ns() >= deadline)
            status = too_late(reply);
        if (status != OXIFLOW_OK) {
            close(*lock);
            return status;
        }
        struct timespec pause = {0, 100000};
        nanosleep(&pause, NULL);
    }
    return OXIFLOW_OK;
}

static void unlock(int lock)
{
    /* Explicitly: a child that is being forked may share the descriptor for a moment. */
    flock(lock, LOCK_UN);
    close(lock);
}

/*
 * Only a lock that is asked for again and again can be given up at a deadline, and one that is
 * asked for like that goes to whoever comes at the right moment: a writer that comes back at once
 * would starve the others. So everyone passes through `next`, and whoever waits holds it.
 */
static int32_t lock_store(const store *store, uint64_t deadline, int *lock,
                          const oxiflow_reply *reply)
{
    int next;
    int32_t status = lock_file(store, "next", deadline, &next, reply);
    if (status != OXIFLOW_OK)
        return status;
    status = lock_file(store, "lock", deadline, lock, reply);
    unlock(next);
    return status;
}

/* Reads what a key is at, and holds the expectation against it. */
static int32_t check(const store *store, const name *file, oxiflow_slice key,
                     const oxiflow_expected *expected, int *exists, oxiflow_version *version,
                     const oxiflow_reply *reply)
{
    record found;
    int32_t status = read_record(store, file->text, 0, &found, reply);
    if (status != OXIFLOW_OK && status != OXIFLOW_NOT_FOUND)
        return status;
    *exists = status == OXIFLOW_OK;
    oxiflow_version current = {0, {0}};
    if (*exists) {
        current = version_of(found.version);
        int same = found.key_len == key.len && memcmp(found.key, key.ptr, key.len) == 0;
        discard(&found);
        if (!same)
            return fail(reply, OXIFLOW_INTERNAL, "two keys have one hash");
    }
    int holds;
    switch (expected->kind) {
    case OXIFLOW_EXPECTED_ANY:
        holds = 1;
        break;
    case OXIFLOW_EXPECTED_ABSENT:
        holds = !*exists;
        break;
    case OXIFLOW_EXPECTED_VERSION:
        holds = *exists && memcmp(&current, &expected->version, sizeof current) == 0;
        break;
    default:
        return fail(reply, OXIFLOW_INVALID, "the expectation of the write makes no sense");
    }
    if (!holds) {
        *version = current;
        return OXIFLOW_CONFLICT;
    }
    return OXIFLOW_OK;
}

static int32_t check_key(oxiflow_slice key, const oxiflow_reply *reply)
{
    if (key.len == 0 || key.len > OXIFLOW_MAX_KEY_BYTES)
        return fail(reply, OXIFLOW_INVALID, "a key has 1 to 512 bytes");
    return OXIFLOW_OK;
}

/* ---- Options (C12) ---------------------------------------------------------------------------- */

typedef struct json {
    const uint8_t *at, *end;
} json;

static int json_skip(json *text, int wanted)
{
    while (text->at < text->end && strchr(" \t\r\n", *text->at) != NULL && *text->at != 0)
        text->at++;
    if (text->at < text->end && *text->at == wanted) {
        text->at++;
        return 1;
    }
    return 0;
}

/* A string without escapes of the kind \u. Returns 0 when there is none. */
static int json_string(json *text, char *into, size_t size)
{
    size_t len = 0;
    if (!json_skip(text, '"'))
        return 0;
    while (text->at < text->end && *text->at != '"') {
        uint8_t byte = *text->at++;
        if (byte == '\\') {
            if (text->at == text->end || strchr("\"\\/", *text->at) == NULL)
                return 0;
            byte = *text->at++;
        }
        if (byte < 0x20 || len + 1 >= size)
            return 0;
        into[len++] = (char)byte;
    }
    into[len] = 0;
    return json_skip(text, '"');
}

/* Reads the options: at most `folder`. The message names the option and repeats no value. */
static int32_t read_options(oxiflow_slice config, char *folder, size_t size,
                            const oxiflow_reply *reply)
{
    json text = {config.ptr, config.ptr + config.len};
    char option[64], message[128];
    if (!json_skip(&text, '{'))
        return fail(reply, OXIFLOW_INVALID, "backend_config is not a JSON object");
    int more = !json_skip(&text, '}');
    while (more) {
        if (!json_string(&text, option, sizeof option) || !json_skip(&text, ':'))
            return fail(reply, OXIFLOW_INVALID, "backend_config is not a JSON object");
        if (strcmp(option, "folder") != 0) {
            snprintf(message, sizeof message, "option `%s`: there is no such option", option);
            return fail(reply, OXIFLOW_INVALID, message);
        }
        if (!json_string(&text, folder, size) || folder[0] == 0)
            return fail(reply, OXIFLOW_INVALID, "option `folder`: not a path");
        more = json_skip(&text, ',');
        if (!more && !json_skip(&text, '}'))
            return fail(reply, OXIFLOW_INVALID, "backend_config is not a JSON object");
    }
    json_skip(&text, 0);
    if (text.at != text.end)
        return fail(reply, OXIFLOW_INVALID, "backend_config is not a JSON object");
    return OXIFLOW_OK;
}

/* ---- The table -------------------------------------------------------------------------------- */

static int32_t describe(const oxiflow_reply *reply)
{
    reply->value(reply->context, slice(DESCRIPTION, sizeof DESCRIPTION - 1), NULL);
    return OXIFLOW_OK;
}

static int32_t open_store(const oxiflow_host *host, oxiflow_slice config, oxiflow_opened *opened,
                          const oxiflow_reply *reply)
{
    char base[4096], folder[4096] = "cfolder";
    int32_t status = read_options(config, folder, sizeof folder, reply);
    if (status != OXIFLOW_OK)
        return status;
    if (host->base_dir.len >= sizeof base)
        return fail(reply, OXIFLOW_INVALID, "the path of the project is too long");
    memcpy(base, host->base_dir.ptr, host->base_dir.len);
    base[host->base_dir.len] = 0;
    int project = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (project < 0)
        return fail_errno(reply, "open the project's folder");
    int made = mkdirat(project, folder, 0700) == 0;
    int opened_folder = openat(project, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int opening = errno;
    close(project);
    if (opened_folder < 0) {
        errno = opening;
        return fail_errno(reply, "open the folder");
    }
    if (made) {
        /* A folder just made survives power loss when the one above it is synced. */
        int above = openat(opened_folder, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (above < 0 || fsync(above) != 0)
            status = fail_errno(reply, "sync the folder above");
        if (above >= 0)
            close(above);
    }
    store *store = status == OXIFLOW_OK ? malloc(sizeof *store) : NULL;
    if (store == NULL) {
        close(opened_folder);
        return status != OXIFLOW_OK ? status : fail(reply, OXIFLOW_INTERNAL, "out of memory");
    }
    store->folder = opened_folder;
    opened->handle = store;
    opened->capabilities = PROMISES;
    return OXIFLOW_OK;
}

static void close_store(void *handle)
{
    store *store = handle;
    close(store->folder);
    free(store);
}

static int32_t get(void *handle, const oxiflow_call *call, oxiflow_slice key,
                   const oxiflow_reply *reply)
{
    (void)call;
    int32_t status = check_key(key, reply);
    if (status != OXIFLOW_OK)
        return status;
    record found;
    name file = name_of(key);
    status = read_record(handle, file.text, 1, &found, reply);
    if (status != OXIFLOW_OK)
        return status;
    if (found.key_len != key.len || memcmp(found.key, key.ptr, key.len) != 0) {
        status = fail(reply, OXIFLOW_INTERNAL, "two keys have one hash");
    } else {
        oxiflow_version version = version_of(found.version);
        reply->value(reply->context, slice(found.value, found.value_len), &version);
    }
    discard(&found);
    return status;
}

static int32_t put(void *handle, const oxiflow_call *call, oxiflow_slice key, oxiflow_slice value,
                   const oxiflow_expected *expected, oxiflow_version *version,
                   const oxiflow_reply *reply)
{
    const store *store = handle;
    uint64_t deadline = deadline_of(call), next = 0;
    int lock, exists;
    int32_t status = check_key(key, reply);
    if (status != OXIFLOW_OK)
        return status;
    if (value.len > OXIFLOW_MIN_MAX_VALUE_BYTES)
        return fail(reply, OXIFLOW_TOO_LARGE, "values have up to 16 MiB");
    status = lock_store(store, deadline, &lock, reply);
    if (status != OXIFLOW_OK)
        return status;
    name file = name_of(key);
    status = check(store, &file, key, expected, &exists, version, reply);
    if (status == OXIFLOW_OK)
        status = next_version(store, &next, reply);
    if (status == OXIFLOW_OK) {
        header head = {{0}, next, key.len, value.len};
        memcpy(head.magic, MAGIC, sizeof MAGIC);
        oxiflow_slice parts[] = {slice(&head, sizeof head), key, value};
        status = replace(store, file.text, parts, 3, deadline, reply);
    }
    if (status == OXIFLOW_OK)
        *version = version_of(next);
    unlock(lock);
    return status;
}

static int32_t delete_key(void *handle, const oxiflow_call *call, oxiflow_slice key,
                          const oxiflow_expected *expected, oxiflow_version *version,
                          const oxiflow_reply *reply)
{
    const store *store = handle;
    uint64_t deadline = deadline_of(call);
    int lock, exists = 0;
    int32_t status = check_key(key, reply);
    if (status == OXIFLOW_OK)
        status = lock_store(store, deadline, &lock, reply);
    if (status != OXIFLOW_OK)
        return status;
    name file = name_of(key);
    status = check(store, &file, key, expected, &exists, version, reply);
    if (status == OXIFLOW_OK && !exists)
        status = OXIFLOW_NOT_FOUND;
    else if (status == OXIFLOW_OK && now_ns() >= deadline)
        status = too_late(reply);
    else if (status == OXIFLOW_OK && unlinkat(store->folder, file.text, 0) != 0)
        status = fail_errno(reply, "remove a key's file");
    else if (status == OXIFLOW_OK && fsync(store->folder) != 0)
        status = fail(reply, OXIFLOW_OUTCOME_UNKNOWN, "cannot sync the folder after a removal");
    unlock(lock);
    return status;
}

static int by_key(const void *one, const void *other)
{
    const record *a = one, *b = other;
    size_t shorter = a->key_len < b->key_len ? a->key_len : b->key_len;
    int order = memcmp(a->key, b->key, shorter);
    return order != 0 ? order : (a->key_len > b->key_len) - (a->key_len < b->key_len);
}

/* Whether a listing wants this key. */
static int is_wanted(const record *found, oxiflow_slice prefix, oxiflow_slice after)
{
    if (found->key_len < prefix.len ||
        (prefix.len > 0 && memcmp(found->key, prefix.ptr, prefix.len) != 0))
        return 0;
    record last = {0, (uint8_t *)after.ptr, NULL, after.len, 0};
    return after.len == 0 || by_key(found, &last) > 0;
}

/* Reads the header of every file, since names say nothing of the order of keys (C7). */
static int32_t list(void *handle, const oxiflow_call *call, oxiflow_slice prefix,
                    oxiflow_slice after, uint64_t limit, const oxiflow_reply *reply)
{
    const store *store = handle;
    uint64_t deadline = deadline_of(call);
    size_t count = 0, room = 0;
    record *rows = NULL;
    int32_t status = OXIFLOW_OK;
    int copy = openat(store->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = copy < 0 ? NULL : fdopendir(copy);
    if (folder == NULL) {
        status = fail_errno(reply, "read the folder");
        if (copy >= 0)
            close(copy);
        return status;
    }
    for (struct dirent *entry; status == OXIFLOW_OK && (entry = readdir(folder)) != NULL;) {
        const char *end = strrchr(entry->d_name, '.');
        if (end == NULL || strcmp(end, ".key") != 0)
            continue;
        record found;
        status = now_ns() >= deadline ? too_late(reply)
                                      : read_record(store, entry->d_name, 0, &found, reply);
        if (status == OXIFLOW_NOT_FOUND) { /* It was deleted meanwhile. */
            status = OXIFLOW_OK;
            continue;
        }
        if (status != OXIFLOW_OK)
            break;
        if (!is_wanted(&found, prefix, after)) {
            discard(&found);
            continue;
        }
        if (count == room) {
            record *larger = realloc(rows, (room = 2 * room + 64) * sizeof *rows);
            if (larger == NULL) {
                discard(&found);
                status = fail(reply, OXIFLOW_INTERNAL, "out of memory");
                break;
            }
            rows = larger;
        }
        rows[count++] = found;
    }
    closedir(folder);
    if (status == OXIFLOW_OK && count > 0)
        qsort(rows, count, sizeof *rows, by_key);
    for (size_t i = 0; status == OXIFLOW_OK && i < count && i < limit; i++) {
        oxiflow_listed row = {sizeof row,      0,
                              slice(rows[i].key, rows[i].key_len), rows[i].value_len,
                              OXIFLOW_UNKNOWN, version_of(rows[i].version)};
        if (reply->row(reply->context, &row) != 0)
            break;
    }
    for (size_t i = 0; i < count; i++)
        discard(&rows[i]);
    free(rows);
    return status;
}

static int32_t health(void *handle, const oxiflow_call *call, oxiflow_health *health,
                      const oxiflow_reply *reply)
{
    const store *store = handle;
    (void)call;
    uint64_t started = now_ns();
    struct stat status;
    if (fstat(store->folder, &status) != 0)
        return fail_errno(reply, "look at the folder");
    health->latency_ns = now_ns() - started;
    health->used_bytes = health->free_bytes = OXIFLOW_UNKNOWN;
    return OXIFLOW_OK;
}

static const void *get_extension(oxiflow_slice id)
{
    (void)id;
    return NULL;
}

EXPORT const oxiflow_backend_table oxiflow_backend_v1 = {
    sizeof(oxiflow_backend_table),
    OXIFLOW_ABI_MAJOR,
    OXIFLOW_ABI_MINOR,
    0,
    PROMISES,
    describe,
    open_store,
    close_store,
    get,
    put,
    delete_key,
    list,
    health,
    get_extension,
};
