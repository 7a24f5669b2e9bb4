/*
 * The storage contract of oxide_flow, ABI v1, for plugins that are not written in Rust.
 *
 * A plugin is a shared library `liboxiflow_backend_<name>.so` that exports one constant:
 *
 *     const oxiflow_backend_table oxiflow_backend_v1 = { sizeof(oxiflow_backend_table), ... };
 *
 * This file declares what `plugin-api/src/abi.rs` declares; a test compares the two. Nothing in it
 * changes within major version 1: growth happens through `get_extension`, and an incompatible ABI
 * gets another symbol name. It is C99 and C++, and expects 64-bit pointers and 8-byte alignment
 * (LP64).
 *
 * Rules of the boundary, for both sides:
 *
 *  - Slices and structs that are passed to a call are borrowed. They are valid only during that
 *    call; what is to be kept is copied. This holds for callbacks too. The one exception is
 *    `oxiflow_host` and what it points to, which stay valid for the life of the process.
 *  - Text is UTF-8 without a terminating NUL. Keys are 1 to 512 bytes of UTF-8; any such key is
 *    legal, including one with `/`, `..`, NUL or newlines in it.
 *  - No unwinding crosses: a C++ plugin catches every exception inside every function and returns
 *    OXIFLOW_PANIC or OXIFLOW_INTERNAL.
 *  - Every struct that may be read by a side that did not write it starts with its size in bytes.
 *    `reserved` fields are zero and are not read.
 *  - Every function of the table may be called from any thread, several at once on one handle.
 *    Only `close` is exclusive: no other call is under way on the handle, and none follows.
 *  - The callbacks of an `oxiflow_reply` are called only during the call that it was passed to and
 *    only from the thread of that call. `oxiflow_host.log` may be called from any thread at any
 *    time.
 *  - A library is never unloaded.
 *  - A pointer parameter is never null, except `version` of the `value` callback; `call` may be
 *    null, which stands for no deadline and no trace id.
 *
 * What a backend keeps; `oxide_flow plugin certify FILE` proves that it does, clause by clause:
 *
 *  C1  A reader sees a whole value, the new one or the one before, also after a crash at any
 *      instant.
 *  C2  When `put` or `del` returns OXIFLOW_OK the change survives power loss, unless the store does
 *      not promise OXIFLOW_CAPABILITY_DURABLE.
 *  C3  A write whose expectation does not hold returns OXIFLOW_CONFLICT and changes nothing.
 *  C4  A write whose outcome cannot be known returns OXIFLOW_OUTCOME_UNKNOWN, never
 *      OXIFLOW_UNAVAILABLE.
 *  C5  A version is never reused for a key, not even after it was deleted and made again.
 *  C6  Operations on one key are linearizable across threads, and across processes unless the store
 *      does not promise OXIFLOW_CAPABILITY_MULTI_PROCESS.
 *  C7  `list` is ordered by the bytes of the keys, goes on after `after`, and misses no key that was
 *      there all along.
 *  C8  Any UTF-8 key of 1 to 512 bytes works, and none reaches outside of the store; any other is
 *      OXIFLOW_INVALID.
 *  C9  Values are any bytes, from 0 to at least 16 MiB; a larger one than the store takes is
 *      OXIFLOW_TOO_LARGE.
 *  C10 After any error but OXIFLOW_OUTCOME_UNKNOWN the store is as it was before the call.
 *  C11 What was written is there after closing and opening again, unless the store does not promise
 *      OXIFLOW_CAPABILITY_DURABLE.
 *  C12 `open` fails with OXIFLOW_INVALID for a wrong or unknown option, which it names, and for a
 *      configuration that is no JSON object; no secret is in an error or a log.
 *  C13 A call returns by its deadline, with OXIFLOW_TIMEOUT or OXIFLOW_OUTCOME_UNKNOWN.
 *  C14 A crash of the language, such as an exception, is contained: that call returns
 *      OXIFLOW_PANIC, and the process lives.
 *
 * The documentation of the Rust trait `oxiflow_plugin_api::Backend` has them with reasons.
 */
#ifndef OXIFLOW_BACKEND_H
#define OXIFLOW_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The major version is in the name of the exported symbol as well. */
#define OXIFLOW_ABI_MAJOR 1u
/* Which extensions this header documents. 1 came with `oxiflow.batch/1`. */
#define OXIFLOW_ABI_MINOR 1u
/* Name of the exported table, for dlsym. */
#define OXIFLOW_TABLE_SYMBOL "oxiflow_backend_v1"

/* The longest key and the longest version, in bytes. */
#define OXIFLOW_MAX_KEY_BYTES 512u
#define OXIFLOW_MAX_VERSION_BYTES 60u
/* Every backend takes values of at least this many bytes (16 MiB). */
#define OXIFLOW_MIN_MAX_VALUE_BYTES 16777216u
/* Stands for "unknown" in every uint64_t that may be unknown. */
#define OXIFLOW_UNKNOWN UINT64_MAX

/* What functions return, as int32_t. The host takes any other number for OXIFLOW_INTERNAL. */
enum oxiflow_status {
    /* The call did what it says. */
    OXIFLOW_OK = 0,
    /* get, delete: the key is absent. */
    OXIFLOW_NOT_FOUND = 1,
    /* The expectation of a write does not hold; nothing was changed. */
    OXIFLOW_CONFLICT = 2,
    /* The call or the configuration is wrong; repeating it will not help. */
    OXIFLOW_INVALID = 3,
    /* The store cannot be reached now; nothing was changed, a retry may help. */
    OXIFLOW_UNAVAILABLE = 4,
    /* The deadline passed; nothing was changed. */
    OXIFLOW_TIMEOUT = 5,
    /* The store refused for lack of permission; nothing was changed. */
    OXIFLOW_DENIED = 6,
    /* What is stored is damaged. Never reported as absent. */
    OXIFLOW_CORRUPT = 7,
    /* The store is full; nothing was changed. */
    OXIFLOW_NO_SPACE = 8,
    /* The value is larger than the store takes; nothing was changed. */
    OXIFLOW_TOO_LARGE = 9,
    /* The backend does not do this. */
    OXIFLOW_UNSUPPORTED = 10,
    /* A bug or a surprise inside the backend. */
    OXIFLOW_INTERNAL = 11,
    /* The backend panicked; the call did not complete. */
    OXIFLOW_PANIC = 12,
    /* The write may have happened: the host reads back before it decides. */
    OXIFLOW_OUTCOME_UNKNOWN = 13
};

/* Bits of `capabilities`. Unset: the promise is not given. */
/* Acknowledged writes survive power loss (C2) and reopening (C11). */
#define OXIFLOW_CAPABILITY_DURABLE UINT64_C(1)
/* Compare-and-swap is linearizable across processes, not only across threads (C6). */
#define OXIFLOW_CAPABILITY_MULTI_PROCESS UINT64_C(2)

/* Values of `oxiflow_expected.kind`. */
enum oxiflow_expected_kind {
    /* Write whatever is there. */
    OXIFLOW_EXPECTED_ANY = 0,
    /* Write only if the key does not exist. */
    OXIFLOW_EXPECTED_ABSENT = 1,
    /* Write only if the key is at exactly `version`. */
    OXIFLOW_EXPECTED_VERSION = 2
};

/* Levels of `log` and `max_log_level`; a lower number is more important. */
enum oxiflow_log_level {
    OXIFLOW_LOG_ERROR = 1,
    OXIFLOW_LOG_WARN = 2,
    OXIFLOW_LOG_INFO = 3,
    OXIFLOW_LOG_DEBUG = 4,
    OXIFLOW_LOG_TRACE = 5
};

/* Borrowed bytes. */
typedef struct oxiflow_slice {
    /* The first byte; may be null when `len` is 0. */
    const uint8_t *ptr;
    size_t len;
} oxiflow_slice;

/* A version: an opaque token that names one write of one key and is never reused for that key.
 * `len` bytes of `bytes` count, those after are zero. Length 0 stands for "absent". */
typedef struct oxiflow_version {
    uint32_t len;
    uint8_t bytes[60];
} oxiflow_version;

/* What a write expects to find: the compare of compare-and-swap. */
typedef struct oxiflow_expected {
    /* enum oxiflow_expected_kind */
    uint32_t kind;
    /* The expected version when `kind` is OXIFLOW_EXPECTED_VERSION, otherwise absent. */
    oxiflow_version version;
} oxiflow_expected;

/* The context of a call. */
typedef struct oxiflow_call {
    uint32_t struct_size;
    uint32_t reserved;
    /* Nanoseconds the call may take, counted from its entry; 0 means that there is no deadline. */
    uint64_t timeout_ns;
    /* Ties log lines to an operation; all zeros when there is none. */
    uint8_t trace_id[16];
} oxiflow_call;

/* One row of a listing. */
typedef struct oxiflow_listed {
    uint32_t struct_size;
    uint32_t reserved;
    oxiflow_slice key;
    /* Size of the value in bytes. */
    uint64_t size;
    /* When the value was last written, in milliseconds since the Unix epoch, or OXIFLOW_UNKNOWN. */
    uint64_t modified_ms;
    oxiflow_version version;
} oxiflow_listed;

/* Where a call puts results of variable size. Every callback copies before it returns. */
typedef struct oxiflow_reply {
    uint32_t struct_size;
    uint32_t reserved;
    /* Handed back to each callback. */
    void *context;
    /* A message for people that goes with the error status about to be returned. */
    void (*message)(void *context, oxiflow_slice text);
    /* get: the value and its version; with OXIFLOW_CORRUPT, if it can be told, the bytes that are
     * left and the version that an expectation of this damage names. describe: JSON, version null.
     * health: the version of the server as text, version null. */
    void (*value)(void *context, oxiflow_slice value, const oxiflow_version *version);
    /* list: the next row. Returns 0 to go on, anything else to stop. */
    int32_t (*row)(void *context, const oxiflow_listed *row);
} oxiflow_reply;

/* The host, as a plugin sees it. Valid for the life of the process. */
typedef struct oxiflow_host {
    uint32_t struct_size;
    /* The least important level that the host wants; enum oxiflow_log_level. */
    uint32_t max_log_level;
    /* Handed back to `log`. */
    void *context;
    /* Takes a log line: enum oxiflow_log_level, module, message, `name=value` fields. */
    void (*log)(void *context, uint32_t level, oxiflow_slice target, oxiflow_slice message,
                oxiflow_slice fields);
    /* Absolute folder that relative paths in the configuration start at. */
    oxiflow_slice base_dir;
} oxiflow_host;

/* What `open` fills in. The host sets `struct_size`. */
typedef struct oxiflow_opened {
    uint32_t struct_size;
    uint32_t reserved;
    /* The opened store; handed back to every call on it. */
    void *handle;
    /* What this store promises with this configuration: OXIFLOW_CAPABILITY_ bits. */
    uint64_t capabilities;
} oxiflow_opened;

/* What `health` fills in; OXIFLOW_UNKNOWN where the backend does not know. The host sets
 * `struct_size`. */
typedef struct oxiflow_health {
    uint32_t struct_size;
    uint32_t reserved;
    /* Nanoseconds of one small round trip. */
    uint64_t latency_ns;
    uint64_t used_bytes;
    uint64_t free_bytes;
} oxiflow_health;

/* The table a plugin exports. Functions return an enum oxiflow_status as int32_t. */
typedef struct oxiflow_backend_table {
    uint32_t struct_size;
    /* OXIFLOW_ABI_MAJOR and OXIFLOW_ABI_MINOR of the header the plugin was built with. */
    uint32_t abi_major;
    uint32_t abi_minor;
    uint32_t reserved;
    /* The most the plugin can promise: OXIFLOW_CAPABILITY_ bits. */
    uint64_t capabilities;
    /* Emits a JSON object to `reply->value`: "name", "version", "description" and, if the host
     * shall check options before `open`, "config_schema", a JSON Schema of them. */
    int32_t (*describe)(const oxiflow_reply *reply);
    /* Opens a store with a JSON object of options. A wrong or unknown option is OXIFLOW_INVALID
     * with a message that names the option and does not repeat its value. */
    int32_t (*open)(const oxiflow_host *host, oxiflow_slice config, oxiflow_opened *opened,
                    const oxiflow_reply *reply);
    /* Closes a handle. No other call may be under way on it, and none may follow. */
    void (*close)(void *handle);
    /* Reads a key into `reply->value`, or returns OXIFLOW_NOT_FOUND. */
    int32_t (*get)(void *handle, const oxiflow_call *call, oxiflow_slice key,
                   const oxiflow_reply *reply);
    /* Writes a key. `version` receives the new version, or the current one on conflict (length 0
     * when the key is absent). */
    int32_t (*put)(void *handle, const oxiflow_call *call, oxiflow_slice key, oxiflow_slice value,
                   const oxiflow_expected *expected, oxiflow_version *version,
                   const oxiflow_reply *reply);
    /* Deletes a key, or returns OXIFLOW_NOT_FOUND. `version` receives the current one on
     * conflict. */
    int32_t (*del)(void *handle, const oxiflow_call *call, oxiflow_slice key,
                   const oxiflow_expected *expected, oxiflow_version *version,
                   const oxiflow_reply *reply);
    /* Emits up to `limit` rows to `reply->row`, in byte order of the keys that start with `prefix`
     * and are greater than `after` (empty: from the start). */
    int32_t (*list)(void *handle, const oxiflow_call *call, oxiflow_slice prefix,
                    oxiflow_slice after, uint64_t limit, const oxiflow_reply *reply);
    /* Fills in `health`, and emits the version of the server to `reply->value` if it is known. */
    int32_t (*health)(void *handle, const oxiflow_call *call, oxiflow_health *health,
                      const oxiflow_reply *reply);
    /* The frozen table of an extension such as `oxiflow.batch/1`, or null. */
    const void *(*get_extension)(oxiflow_slice id);
} oxiflow_backend_table;

/* The extension `oxiflow.batch/1`: many changes in one call. A plugin that has it returns a pointer
 * to its oxiflow_batch_table from `get_extension` for this id; one that has not returns null, and
 * the host uses `put` and `del`. Frozen, as the table of the backend is. */
#define OXIFLOW_EXTENSION_BATCH "oxiflow.batch/1"

/* Values of `oxiflow_change.kind`. */
enum oxiflow_change_kind {
    OXIFLOW_CHANGE_PUT = 0,
    OXIFLOW_CHANGE_DELETE = 1
};

/* The modes of `apply`. */
enum oxiflow_batch_mode {
    /* Each change for itself, in their order: one that fails does not keep the others from being
     * made. */
    OXIFLOW_BATCH_INDEPENDENT = 0,
    /* All changes or none, also for readers and through a crash. A plugin that cannot do this
     * returns OXIFLOW_UNSUPPORTED and changes nothing. */
    OXIFLOW_BATCH_ATOMIC = 1
};

/* One change of a batch. */
typedef struct oxiflow_change {
    uint32_t struct_size;
    /* enum oxiflow_change_kind */
    uint32_t kind;
    oxiflow_slice key;
    /* The value of a put, otherwise empty. */
    oxiflow_slice value;
    oxiflow_expected expected;
} oxiflow_change;

/* Where `apply` puts what became of each change. The callback copies before it returns, and is
 * called as those of an oxiflow_reply are. */
typedef struct oxiflow_results {
    uint32_t struct_size;
    uint32_t reserved;
    /* Handed back to the callback. */
    void *context;
    /* The status of the change with this index, counted from 0, with what `put` and `del` return
     * beside it: the new version after a put, the current one on conflict, otherwise null; and a
     * message for people that goes with an error. */
    void (*result)(void *context, uint64_t index, int32_t status, const oxiflow_version *version,
                   oxiflow_slice message);
} oxiflow_results;

/* The table of the extension. */
typedef struct oxiflow_batch_table {
    uint32_t struct_size;
    uint32_t reserved;
    /* Makes `count` changes as if one after the other, in their order. Returns OXIFLOW_OK when each
     * of them has had its result. Anything else: nothing was changed, or, with
     * OXIFLOW_OUTCOME_UNKNOWN, it is unknown what was. The change that kept an atomic batch from
     * being made should have had its result, and its status is returned. */
    int32_t (*apply)(void *handle, const oxiflow_call *call, const oxiflow_change *changes,
                     uint64_t count, uint32_t mode, const oxiflow_results *results,
                     const oxiflow_reply *reply);
} oxiflow_batch_table;

/* What the plugin defines. `del` is the `delete` of the contract, a reserved word in C++. */
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
extern const oxiflow_backend_table oxiflow_backend_v1;

#ifdef __cplusplus
}
#endif

/* The layout that the host expects, on LP64. C99 has no way to say it and is left to the test. */
#if defined(__cplusplus) && __cplusplus >= 201103L
#define OXIFLOW_ASSERT(condition, text) static_assert(condition, text);
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define OXIFLOW_ASSERT(condition, text) _Static_assert(condition, text);
#else
#define OXIFLOW_ASSERT(condition, text)
#endif
#define OXIFLOW_SIZE(type, size) OXIFLOW_ASSERT(sizeof(type) == (size), "size of " #type)
#define OXIFLOW_FIELD(type, field, at) \
    OXIFLOW_ASSERT(offsetof(type, field) == (at), "offset of " #type "." #field)

OXIFLOW_SIZE(oxiflow_slice, 16)
OXIFLOW_FIELD(oxiflow_slice, ptr, 0)
OXIFLOW_FIELD(oxiflow_slice, len, 8)
OXIFLOW_SIZE(oxiflow_version, 64)
OXIFLOW_FIELD(oxiflow_version, len, 0)
OXIFLOW_FIELD(oxiflow_version, bytes, 4)
OXIFLOW_SIZE(oxiflow_expected, 68)
OXIFLOW_FIELD(oxiflow_expected, kind, 0)
OXIFLOW_FIELD(oxiflow_expected, version, 4)
OXIFLOW_SIZE(oxiflow_call, 32)
OXIFLOW_FIELD(oxiflow_call, struct_size, 0)
OXIFLOW_FIELD(oxiflow_call, reserved, 4)
OXIFLOW_FIELD(oxiflow_call, timeout_ns, 8)
OXIFLOW_FIELD(oxiflow_call, trace_id, 16)
OXIFLOW_SIZE(oxiflow_listed, 104)
OXIFLOW_FIELD(oxiflow_listed, struct_size, 0)
OXIFLOW_FIELD(oxiflow_listed, reserved, 4)
OXIFLOW_FIELD(oxiflow_listed, key, 8)
OXIFLOW_FIELD(oxiflow_listed, size, 24)
OXIFLOW_FIELD(oxiflow_listed, modified_ms, 32)
OXIFLOW_FIELD(oxiflow_listed, version, 40)
OXIFLOW_SIZE(oxiflow_reply, 40)
OXIFLOW_FIELD(oxiflow_reply, struct_size, 0)
OXIFLOW_FIELD(oxiflow_reply, reserved, 4)
OXIFLOW_FIELD(oxiflow_reply, context, 8)
OXIFLOW_FIELD(oxiflow_reply, message, 16)
OXIFLOW_FIELD(oxiflow_reply, value, 24)
OXIFLOW_FIELD(oxiflow_reply, row, 32)
OXIFLOW_SIZE(oxiflow_host, 40)
OXIFLOW_FIELD(oxiflow_host, struct_size, 0)
OXIFLOW_FIELD(oxiflow_host, max_log_level, 4)
OXIFLOW_FIELD(oxiflow_host, context, 8)
OXIFLOW_FIELD(oxiflow_host, log, 16)
OXIFLOW_FIELD(oxiflow_host, base_dir, 24)
OXIFLOW_SIZE(oxiflow_opened, 24)
OXIFLOW_FIELD(oxiflow_opened, struct_size, 0)
OXIFLOW_FIELD(oxiflow_opened, reserved, 4)
OXIFLOW_FIELD(oxiflow_opened, handle, 8)
OXIFLOW_FIELD(oxiflow_opened, capabilities, 16)
OXIFLOW_SIZE(oxiflow_health, 32)
OXIFLOW_FIELD(oxiflow_health, struct_size, 0)
OXIFLOW_FIELD(oxiflow_health, reserved, 4)
OXIFLOW_FIELD(oxiflow_health, latency_ns, 8)
OXIFLOW_FIELD(oxiflow_health, used_bytes, 16)
OXIFLOW_FIELD(oxiflow_health, free_bytes, 24)
OXIFLOW_SIZE(oxiflow_backend_table, 96)
OXIFLOW_FIELD(oxiflow_backend_table, struct_size, 0)
OXIFLOW_FIELD(oxiflow_backend_table, abi_major, 4)
OXIFLOW_FIELD(oxiflow_backend_table, abi_minor, 8)
OXIFLOW_FIELD(oxiflow_backend_table, reserved, 12)
OXIFLOW_FIELD(oxiflow_backend_table, capabilities, 16)
OXIFLOW_FIELD(oxiflow_backend_table, describe, 24)
OXIFLOW_FIELD(oxiflow_backend_table, open, 32)
OXIFLOW_FIELD(oxiflow_backend_table, close, 40)
OXIFLOW_FIELD(oxiflow_backend_table, get, 48)
OXIFLOW_FIELD(oxiflow_backend_table, put, 56)
OXIFLOW_FIELD(oxiflow_backend_table, del, 64)
OXIFLOW_FIELD(oxiflow_backend_table, list, 72)
OXIFLOW_FIELD(oxiflow_backend_table, health, 80)
OXIFLOW_FIELD(oxiflow_backend_table, get_extension, 88)
OXIFLOW_SIZE(oxiflow_change, 112)
OXIFLOW_FIELD(oxiflow_change, struct_size, 0)
OXIFLOW_FIELD(oxiflow_change, kind, 4)
OXIFLOW_FIELD(oxiflow_change, key, 8)
OXIFLOW_FIELD(oxiflow_change, value, 24)
OXIFLOW_FIELD(oxiflow_change, expected, 40)
OXIFLOW_SIZE(oxiflow_results, 24)
OXIFLOW_FIELD(oxiflow_results, struct_size, 0)
OXIFLOW_FIELD(oxiflow_results, reserved, 4)
OXIFLOW_FIELD(oxiflow_results, context, 8)
OXIFLOW_FIELD(oxiflow_results, result, 16)
OXIFLOW_SIZE(oxiflow_batch_table, 16)
OXIFLOW_FIELD(oxiflow_batch_table, struct_size, 0)
OXIFLOW_FIELD(oxiflow_batch_table, reserved, 4)
OXIFLOW_FIELD(oxiflow_batch_table, apply, 8)

#undef OXIFLOW_FIELD
#undef OXIFLOW_SIZE
#undef OXIFLOW_ASSERT

#endif /* OXIFLOW_BACKEND_H */
