// How an environment is opened, shared, mapped anew and closed.
#include "environment.hpp"

#include <sys/statvfs.h>

#include <map>

#include "records.hpp"

namespace lmdb_backend {
namespace {

constexpr uint64_t FORMAT = 1;
constexpr unsigned READERS = 1024;

// A disk with less than this is full.
constexpr uint64_t FULL_BYTES = 65536;

// How long `open`, which has no deadline, waits for those who write.
constexpr std::chrono::seconds OPEN_PATIENCE(60);

// The environments of this process. They are opened and closed by whoever holds `mutex`.
struct Registry {
    std::mutex mutex;
    std::map<Folder::Identity, std::weak_ptr<Environment>> environments;

    static Registry &get()
    {
        // Never destroyed: a thread may still be in a call when the process ends.
        static Registry &registry = *new Registry;
        return registry;
    }
};

} // namespace

Environment::Handle *Environment::open(const oxiflow_host *host, const std::string &path,
                                       size_t map_size)
{
    Folder folder(path);
    Registry &registry = Registry::get();
    std::lock_guard<std::mutex> guard(registry.mutex);
    auto found = registry.environments.find(folder.identity());
    if (found != registry.environments.end()) {
        auto handle = std::make_unique<Handle>(found->second);
        (*handle)->map(map_size, Deadline(OPEN_PATIENCE));
        return handle.release();
    }
    // To close one descriptor of the file would undo the locks that LMDB has through another.
    if (folder.has_open("lock.mdb"))
        throw Failure{OXIFLOW_UNSUPPORTED,
                      "option `folder`: another copy of LMDB in this process has it open"};
    auto handle = std::make_unique<Handle>(std::make_shared<Environment>(host, path, map_size));
    registry.environments.emplace(folder.identity(), *handle);
    return handle.release();
}

void Environment::close(Handle *handle) noexcept
{
    Registry &registry = Registry::get();
    std::lock_guard<std::mutex> guard(registry.mutex);
    auto known = registry.environments.find((*handle)->identity_);
    delete handle;
    if (known->second.expired())
        registry.environments.erase(known);
}

Environment::Environment(const oxiflow_host *host, const std::string &path, size_t map_size)
    : host_(host), folder_(path)
{
    MDB_env *made = nullptr;
    check(mdb_env_create(&made), "make an environment");
    env_.reset(made);
    check(mdb_env_set_maxdbs(made, 3), "set the number of databases");
    check(mdb_env_set_maxreaders(made, READERS), "set the number of readers");
    check(mdb_env_set_mapsize(made, map_size), "set the size of the map");
    Deadline deadline(OPEN_PATIENCE);
    // Two processes must not open an environment at the same moment.
    FileLock lock = lock_writers(deadline);
    check(mdb_env_open(made, path.c_str(), MDB_NOTLS, 0600), "open the environment");
    clear_dead_readers();
    open_databases(deadline);
    folder_.sync();
}

Environment::~Environment()
{
    // In a child of the process it is the parent's.
    if (getpid() != process_)
        static_cast<void>(env_.release());
}

void Environment::open_databases(const Deadline &deadline)
{
    Transaction txn(*this, 0, deadline);
    MDB_dbi names;
    MDB_stat stat;
    check(mdb_dbi_open(txn.get(), nullptr, 0, &names), "open the list of databases");
    check(mdb_stat(txn.get(), names, &stat), "count the databases");
    unsigned make = stat.ms_entries == 0 ? MDB_CREATE : 0;
    int code = mdb_dbi_open(txn.get(), "meta", make, &meta);
    MDB_val name = val("format"), format = {0, nullptr};
    if (code == MDB_SUCCESS && make == 0)
        code = mdb_get(txn.get(), meta, &name, &format);
    if (code == MDB_NOTFOUND || code == MDB_INCOMPATIBLE)
        throw Failure{OXIFLOW_INVALID, "option `folder`: the environment is of another program"};
    check(code, "open a database");
    if (make == 0 && view(format) != view(*Number(FORMAT).val()))
        throw Failure{OXIFLOW_UNSUPPORTED, "the environment is of another version of this plugin"};
    check(mdb_dbi_open(txn.get(), "index", make | MDB_DUPSORT, &index), "open a database");
    check(mdb_dbi_open(txn.get(), "values", make, &values), "open a database");
    if (make != 0) {
        MDB_val version = val("version");
        check(mdb_put(txn.get(), meta, &name, Number(FORMAT).val(), 0), "write the format");
        check(mdb_put(txn.get(), meta, &version, Number(0).val(), 0), "write the last version");
    }
    txn.commit();
}

FileLock Environment::lock_writers(const Deadline &deadline)
{
    std::unique_lock<std::timed_mutex> turn(turn_, deadline.at());
    if (!turn.owns_lock())
        Deadline::pass();
    FileLock turn_of_all(folder_, "turn.lock", deadline);
    return FileLock(folder_, "write.lock", deadline);
}

MDB_txn *Environment::begin(unsigned flags, std::shared_lock<Map> &map, const Deadline &deadline)
{
    check_process();
    for (;;) {
        deadline.check();
        map = std::shared_lock<Map>(map_, deadline.at());
        if (!map.owns_lock())
            Deadline::pass();
        MDB_txn *txn = nullptr;
        int code = is_mapped_ ? mdb_txn_begin(env_.get(), nullptr, flags, &txn) : MDB_PANIC;
        if (code == MDB_SUCCESS)
            return txn;
        map.unlock();
        if (code == MDB_MAP_RESIZED)
            this->map(0, deadline);
        else if (code != MDB_READERS_FULL || clear_dead_readers() == 0)
            fail(code, "begin a transaction");
    }
}

void Environment::commit(MDB_txn *txn)
{
    int code = mdb_txn_commit(txn);
    if (code == MDB_SUCCESS)
        return;
    // It failed before its last write, which makes it count, or in that. After the latter LMDB
    // refuses all that comes next, and nobody knows what the disk has (C4).
    MDB_txn *next = nullptr;
    if (mdb_txn_begin(env_.get(), nullptr, MDB_RDONLY, &next) != MDB_SUCCESS)
        throw Failure{OXIFLOW_OUTCOME_UNKNOWN, "the last write of a commit failed"};
    mdb_txn_abort(next);
    // LMDB calls it an I/O error when a disk took only a part of what was written.
    fail(code == EIO && free_on_disk() < FULL_BYTES ? ENOSPC : code, "commit");
}

// Maps at least so many bytes, or with 0 as many as another process has made it. It moves the map,
// so it waits until this process has no transaction.
void Environment::map(size_t size, const Deadline &deadline)
{
    check_process();
    std::unique_lock<Map> alone(map_, deadline.at());
    if (!alone.owns_lock())
        Deadline::pass();
    if (size != 0 && size <= map_size())
        return;
    int code = mdb_env_set_mapsize(env_.get(), size);
    is_mapped_ = code == MDB_SUCCESS;
    check(code, "map the store");
}

int Environment::clear_dead_readers()
{
    int dead = 0;
    check(mdb_reader_check(env_.get(), &dead), "look for readers that died");
    if (dead > 0 && host_->max_log_level >= OXIFLOW_LOG_INFO) {
        std::string fields = "readers=" + std::to_string(dead);
        host_->log(host_->context, OXIFLOW_LOG_INFO, slice("lmdb"),
                   slice("processes that died in a read kept space from being used again"),
                   slice(fields));
    }
    return dead;
}

// LMDB cannot be used in a child of the process that opened it.
void Environment::check_process() const
{
    if (getpid() != process_)
        throw Failure{OXIFLOW_INTERNAL, "the process was forked after it opened the store"};
}

uint64_t Environment::map_size() const
{
    MDB_envinfo info;
    check(mdb_env_info(env_.get(), &info), "look at the map");
    return info.me_mapsize;
}

uint64_t Environment::file_size() const
{
    struct stat file;
    if (fstatat(folder_.get(), "data.mdb", &file, 0) != 0)
        fail(errno, "look at the file");
    return static_cast<uint64_t>(file.st_size);
}

uint64_t Environment::free_on_disk() const
{
    struct statvfs disk;
    if (fstatvfs(folder_.get(), &disk) != 0)
        fail(errno, "look at the disk");
    return uint64_t{disk.f_bavail} * disk.f_frsize;
}

} // namespace lmdb_backend
