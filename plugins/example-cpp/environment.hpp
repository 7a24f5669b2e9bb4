// Environments of LMDB and transactions in them: who may use them when, and how they end.
#pragma once

#include <lmdb.h>

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <utility>

#include "answer.hpp"
#include "files.hpp"

namespace lmdb_backend {

using Map = std::shared_timed_mutex;

// The environment of a folder, one for all handles of this process: LMDB allows no second one.
class Environment {
  public:
    using Handle = std::shared_ptr<Environment>;

    // Opens a folder, unless this process has it open already. The handle is for `close`.
    static Handle *open(const oxiflow_host *host, const std::string &path, size_t map_size);
    static void close(Handle *handle) noexcept;

    Environment(const oxiflow_host *host, const std::string &path, size_t map_size);
    ~Environment();
    Environment(const Environment &) = delete;
    Environment &operator=(const Environment &) = delete;

    // Waits until this thread may write, before all others of all processes.
    //
    // LMDB makes a writer wait for another without an end, and here it waits for `write.lock` until
    // its deadline instead (C13). Whoever waits for it holds the turn, of its process and of all,
    // without which nobody may begin to wait: a writer that comes again at once is behind them.
    FileLock lock_writers(const Deadline &deadline);

    // Begins a transaction; `map` keeps the map where it is meanwhile.
    MDB_txn *begin(unsigned flags, std::shared_lock<Map> &map, const Deadline &deadline);

    // Ends a transaction, so that what it did counts.
    void commit(MDB_txn *txn);

    // Frees what processes that died in the middle of a read still hold, and counts them.
    int clear_dead_readers();

    // In bytes.
    uint64_t map_size() const;
    uint64_t file_size() const;
    uint64_t free_on_disk() const;

    MDB_dbi index = 0, values = 0, meta = 0;

  private:
    struct Close {
        void operator()(MDB_env *env) const { mdb_env_close(env); }
    };

    void open_databases(const Deadline &deadline);
    void map(size_t size, const Deadline &deadline);
    void check_process() const;

    const oxiflow_host *host_;
    const pid_t process_ = getpid();
    const Folder folder_;
    const Folder::Identity identity_ = folder_.identity();
    bool is_mapped_ = true;
    std::timed_mutex turn_;
    Map map_;
    std::unique_ptr<MDB_env, Close> env_;
};

// A transaction, given up unless it is committed.
class Transaction {
  public:
    Transaction(Environment &environment, unsigned flags, const Deadline &deadline)
        : env(environment), txn_(env.begin(flags, map_, deadline))
    {
    }
    ~Transaction()
    {
        if (txn_ != nullptr)
            mdb_txn_abort(txn_);
    }
    Transaction(const Transaction &) = delete;
    Transaction &operator=(const Transaction &) = delete;

    MDB_txn *get() const { return txn_; }
    void commit() { env.commit(std::exchange(txn_, nullptr)); }

    Environment &env;

  private:
    std::shared_lock<Map> map_;
    MDB_txn *txn_;
};

} // namespace lmdb_backend
