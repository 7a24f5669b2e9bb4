// `lmdb`: a whole backend in C++, on LMDB, with the extension `oxiflow.batch/1`.
//
// The folder holds
//
//   data.mdb, lock.mdb       the environment of LMDB, which syncs every commit (C1, C2)
//   turn.lock, write.lock    locked (flock) by whoever writes; never renamed, never removed
//
// and the environment three databases, with big-endian numbers:
//
//   index     the first 511 bytes of a key -> the rest of it (2 bytes), and of its value the
//             version, the size and the milliseconds since 1970 when it was written (8 bytes each)
//   values    version -> value
//   meta      "format" -> 1, "version" -> the last version that was given out
//
// Keys of the contract have up to 512 bytes, those of LMDB up to 511. So the last byte of a key of
// 512 is what a row begins with: 0 for a key that is no longer than 511, and otherwise the byte
// plus 1. LMDB keeps rows of one key as duplicates, sorted by their bytes, and thus the whole index
// in the order of the keys (C7, C8). A duplicate has few bytes, so values are apart, and a listing
// reads none of them.
//
// Versions are counted in the transaction that uses them, so none is used twice (C5). The number
// that LMDB gives a transaction would not do: it starts again in a copy made by `mdb_copy -c`.
//
// This file is the table: options, and what each call does. `records` is the databases,
// `environment` the environments and who may use them when, `files` descriptors and locks, `answer`
// errors and deadlines.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "records.hpp"

namespace lmdb_backend {
namespace {

constexpr char DESCRIPTION[] = R"({
    "name": "lmdb", "version": "1.0.0", "description": "An LMDB environment, in C++",
    "config_schema": {"type": "object", "additionalProperties": false, "properties": {
        "folder": {"type": "string", "minLength": 1, "default": "lmdb",
            "description": "where the environment lies"},
        "map_size": {"type": "integer", "default": 68719476736,
            "minimum": 134217728, "maximum": 17592186044416,
            "description": "how many bytes the store may grow to; they are mapped, not taken"}
}}})";

constexpr uint64_t PROMISES = OXIFLOW_CAPABILITY_DURABLE | OXIFLOW_CAPABILITY_MULTI_PROCESS;
constexpr uint64_t ROWS_BETWEEN_CHECKS = 256;

// ---- Options (C12) -----------------------------------------------------------------------------
struct Options {
    std::string folder = "lmdb";
    uint64_t map_size = UINT64_C(1) << 36;
};

// Reads the options. A message names the option and repeats no value.
Options read_options(oxiflow_slice config)
{
    constexpr uint64_t least = UINT64_C(1) << 27, most = UINT64_C(1) << 44;
    auto require = [](bool is_right, const std::string &message) {
        if (!is_right)
            throw Failure{OXIFLOW_INVALID, message};
    };
    auto text = view(config);
    auto json = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
    require(json.is_object(), "backend_config is not a JSON object");
    Options options;
    for (const auto &[name, value] : json.items()) {
        if (name == "folder") {
            require(value.is_string(), "option `folder`: not a path");
            options.folder = value.get<std::string>();
            require(!options.folder.empty() && options.folder.find('\0') == std::string::npos,
                    "option `folder`: not a path");
        } else if (name == "map_size") {
            require(value.is_number_unsigned(), "option `map_size`: not a number of bytes");
            options.map_size = value.get<uint64_t>();
            require(options.map_size >= least && options.map_size <= most,
                    "option `map_size`: not between 128 MiB and 16 TiB");
        } else {
            require(false, "option `" + name + "`: there is no such option");
        }
    }
    return options;
}

// Makes the folder if there is none, so that it survives power loss.
void make_folder(const std::string &path)
{
    if (mkdir(path.c_str(), 0700) == 0) {
        Folder made(path);
        Folder("..", made.get()).sync();
    } else if (errno == ENOENT || errno == ENOTDIR) {
        throw Failure{OXIFLOW_INVALID, "option `folder`: the folder above does not exist"};
    } else if (errno != EEXIST) {
        fail(errno, "make the folder");
    } else if (!std::filesystem::is_directory(path)) {
        throw Failure{OXIFLOW_INVALID, "option `folder`: not a folder"};
    }
}

// ---- The table ---------------------------------------------------------------------------------
Environment &environment(void *handle)
{
    return **static_cast<Environment::Handle *>(handle);
}

int32_t answer(const Outcome &outcome, const oxiflow_reply *reply)
{
    if (!outcome.message.empty())
        reply->message(reply->context, slice(outcome.message));
    return outcome.status;
}

// Makes one change in a transaction of its own.
int32_t change_alone(void *handle, const oxiflow_call *call, const oxiflow_change &change,
                     oxiflow_version *version, const oxiflow_reply *reply)
{
    return guarded(reply, [&] {
        Deadline deadline(call);
        Writer writer(environment(handle), deadline);
        Outcome outcome = writer.change(change);
        if (outcome.status == OXIFLOW_OK)
            writer.commit();
        *version = outcome.version;
        return answer(outcome, reply);
    });
}

extern "C" {

static int32_t describe(const oxiflow_reply *reply)
{
    reply->value(reply->context, slice(DESCRIPTION), nullptr);
    return OXIFLOW_OK;
}

static int32_t open_store(const oxiflow_host *host, oxiflow_slice config, oxiflow_opened *opened,
                          const oxiflow_reply *reply)
{
    return guarded(reply, [&] {
        Options options = read_options(config);
        std::string path = std::filesystem::path(view(host->base_dir)) / options.folder;
        make_folder(path);
        auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
        opened->handle = Environment::open(host, path, options.map_size / page * page);
        opened->capabilities = PROMISES;
        return OXIFLOW_OK;
    });
}

static void close_store(void *handle)
{
    Environment::close(static_cast<Environment::Handle *>(handle));
}

static int32_t get(void *handle, const oxiflow_call *call, oxiflow_slice key,
                   const oxiflow_reply *reply)
{
    return guarded(reply, [&] {
        if (const char *wrong = wrong_key(key))
            throw Failure{OXIFLOW_INVALID, wrong};
        Transaction txn(environment(handle), MDB_RDONLY, Deadline(call));
        auto entry = find(txn, view(key));
        if (!entry)
            return OXIFLOW_NOT_FOUND;
        oxiflow_version version = entry->token();
        reply->value(reply->context, slice(read_value(txn, *entry)), &version);
        return OXIFLOW_OK;
    });
}

static int32_t put(void *handle, const oxiflow_call *call, oxiflow_slice key, oxiflow_slice value,
                   const oxiflow_expected *expected, oxiflow_version *version,
                   const oxiflow_reply *reply)
{
    oxiflow_change change = {sizeof change, OXIFLOW_CHANGE_PUT, key, value, *expected};
    return change_alone(handle, call, change, version, reply);
}

static int32_t delete_key(void *handle, const oxiflow_call *call, oxiflow_slice key,
                          const oxiflow_expected *expected, oxiflow_version *version,
                          const oxiflow_reply *reply)
{
    oxiflow_change change = {sizeof change, OXIFLOW_CHANGE_DELETE, key, {nullptr, 0}, *expected};
    return change_alone(handle, call, change, version, reply);
}

static int32_t list(void *handle, const oxiflow_call *call, oxiflow_slice prefix_bytes,
                    oxiflow_slice after_bytes, uint64_t limit, const oxiflow_reply *reply)
{
    return guarded(reply, [&] {
        auto prefix = view(prefix_bytes), after = view(after_bytes);
        Deadline deadline(call);
        Transaction txn(environment(handle), MDB_RDONLY, deadline);
        Cursor cursor(txn);
        bool found = cursor.seek(std::max(prefix, after));
        for (uint64_t rows = 0, seen = 1; found && rows < limit; found = cursor.next(), seen++) {
            if (seen % ROWS_BETWEEN_CHECKS == 0)
                deadline.check();
            std::string key = cursor.key();
            if (key <= after || key < prefix)
                continue;
            if (key.compare(0, prefix.size(), prefix) != 0)
                break;
            Entry entry = cursor.entry();
            oxiflow_listed row = {sizeof row, 0, slice(key), entry.size, entry.modified_ms,
                                  entry.token()};
            if (reply->row(reply->context, &row) != 0)
                break;
            rows++;
        }
        return OXIFLOW_OK;
    });
}

static int32_t health(void *handle, const oxiflow_call *call, oxiflow_health *health,
                      const oxiflow_reply *reply)
{
    return guarded(reply, [&] {
        auto started = Deadline::Clock::now();
        Transaction txn(environment(handle), MDB_RDONLY, Deadline(call));
        uint64_t used = 0;
        for (MDB_dbi database : {txn.env.index, txn.env.values, txn.env.meta}) {
            MDB_stat stat;
            check(mdb_stat(txn.get(), database, &stat), "count pages");
            used += (stat.ms_branch_pages + stat.ms_leaf_pages + stat.ms_overflow_pages) *
                    uint64_t{stat.ms_psize};
        }
        std::chrono::nanoseconds latency = Deadline::Clock::now() - started;
        uint64_t most =
            std::min(txn.env.map_size(), txn.env.file_size() + txn.env.free_on_disk());
        health->latency_ns = static_cast<uint64_t>(latency.count());
        health->used_bytes = used;
        health->free_bytes = most - std::min(used, most);
        reply->value(reply->context, slice(mdb_version(nullptr, nullptr, nullptr)), nullptr);
        return OXIFLOW_OK;
    });
}

// One transaction, and with it one sync, for all changes (C15).
static int32_t apply(void *handle, const oxiflow_call *call, const oxiflow_change *changes,
                     uint64_t count, uint32_t mode, const oxiflow_results *results,
                     const oxiflow_reply *reply)
{
    return guarded(reply, [&]() -> int32_t {
        if (mode != OXIFLOW_BATCH_INDEPENDENT && mode != OXIFLOW_BATCH_ATOMIC)
            throw Failure{OXIFLOW_INVALID, "the mode of the batch makes no sense"};
        auto tell = [&](uint64_t index, const Outcome &outcome) {
            bool has_version = outcome.version.len > 0 || outcome.status == OXIFLOW_CONFLICT;
            results->result(results->context, index, outcome.status,
                            has_version ? &outcome.version : nullptr, slice(outcome.message));
        };
        Deadline deadline(call);
        Writer writer(environment(handle), deadline);
        std::vector<Outcome> outcomes;
        for (uint64_t i = 0; i < count; i++) {
            outcomes.push_back(writer.change(changes[i]));
            if (mode == OXIFLOW_BATCH_ATOMIC && outcomes[i].is_refusal()) {
                tell(i, outcomes[i]);
                return answer(outcomes[i], reply);
            }
        }
        writer.commit();
        for (uint64_t i = 0; i < count; i++)
            tell(i, outcomes[i]);
        return OXIFLOW_OK;
    });
}

static const void *get_extension(oxiflow_slice id)
{
    static constexpr oxiflow_batch_table batch = {sizeof batch, 0, apply};
    return view(id) == OXIFLOW_EXTENSION_BATCH ? &batch : nullptr;
}

} // extern "C"
} // namespace
} // namespace lmdb_backend

const oxiflow_backend_table oxiflow_backend_v1 = {
    sizeof(oxiflow_backend_table),
    OXIFLOW_ABI_MAJOR,
    OXIFLOW_ABI_MINOR,
    0,
    lmdb_backend::PROMISES,
    lmdb_backend::describe,
    lmdb_backend::open_store,
    lmdb_backend::close_store,
    lmdb_backend::get,
    lmdb_backend::put,
    lmdb_backend::delete_key,
    lmdb_backend::list,
    lmdb_backend::health,
    lmdb_backend::get_extension,
};
