// Answers of a call: what is thrown in it, and what becomes of that at the boundary.
#pragma once

#include <lmdb.h>

#include <cerrno>
#include <chrono>
#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "oxiflow_backend.h"

namespace lmdb_backend {

// Thrown by a call that cannot go on and has changed nothing, unless its status says otherwise.
struct Failure {
    int32_t status;
    std::string message;
};

inline oxiflow_slice slice(std::string_view text)
{
    return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

inline std::string_view view(oxiflow_slice bytes)
{
    return {reinterpret_cast<const char *>(bytes.ptr), bytes.len};
}

// Runs an entry of the table: no exception crosses the boundary (C14).
template <typename Work> int32_t guarded(const oxiflow_reply *reply, Work work) noexcept
{
    auto fail = [reply](int32_t status, std::string_view message) {
        reply->message(reply->context, slice(message));
        return status;
    };
    try {
        return work();
    } catch (const Failure &failure) {
        return fail(failure.status, failure.message);
    } catch (const std::bad_alloc &) {
        return fail(OXIFLOW_INTERNAL, "out of memory");
    } catch (const std::exception &error) {
        return fail(OXIFLOW_PANIC, error.what());
    } catch (...) {
        return fail(OXIFLOW_PANIC, "an exception of no known kind");
    }
}

// The status of an error of LMDB (below 0) or of the system that changed nothing.
inline int32_t status_of(int code)
{
    switch (code) {
    case MDB_MAP_FULL:
    case ENOSPC:
    case EDQUOT:
        return OXIFLOW_NO_SPACE;
    case MDB_TXN_FULL:
        return OXIFLOW_TOO_LARGE;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
        return OXIFLOW_CORRUPT;
    case EACCES:
    case EPERM:
    case EROFS:
        return OXIFLOW_DENIED;
    case MDB_READERS_FULL:
    case MDB_PANIC:
        return OXIFLOW_UNAVAILABLE;
    default:
        return code > 0 ? OXIFLOW_UNAVAILABLE : OXIFLOW_INTERNAL;
    }
}

[[noreturn]] inline void fail(int code, const std::string &action)
{
    const char *hint = code == MDB_MAP_FULL ? "; option `map_size` allows no more"
                       : code == ENOMEM     ? "; a smaller `map_size` may help"
                                            : "";
    throw Failure{status_of(code), "cannot " + action + ": " + mdb_strerror(code) + hint};
}

inline void check(int code, const char *action)
{
    if (code != MDB_SUCCESS)
        fail(code, action);
}

// When a call must be over (C13).
class Deadline {
  public:
    using Clock = std::chrono::steady_clock;

    explicit Deadline(Clock::duration patience) : at_(Clock::now() + patience) {}

    explicit Deadline(const oxiflow_call *call) : at_(Clock::time_point::max())
    {
        auto now = Clock::now();
        auto most = static_cast<uint64_t>(std::chrono::nanoseconds(at_ - now).count());
        if (call != nullptr && call->timeout_ns != 0 && call->timeout_ns < most)
            at_ = now + std::chrono::nanoseconds(call->timeout_ns);
    }

    Clock::time_point at() const { return at_; }

    void check() const
    {
        if (Clock::now() >= at_)
            pass();
    }

    [[noreturn]] static void pass()
    {
        throw Failure{OXIFLOW_TIMEOUT, "the deadline passed before anything was changed"};
    }

  private:
    Clock::time_point at_;
};

} // namespace lmdb_backend
