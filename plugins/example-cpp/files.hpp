// Descriptors and locks that end with their scope.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <utility>

#include "answer.hpp"

namespace lmdb_backend {

class File {
  public:
    File(int folder, const char *name, int flags)
        : descriptor_(openat(folder, name, flags | O_CLOEXEC, 0600))
    {
        if (descriptor_ < 0)
            fail(errno, std::string("open ") + name);
    }
    ~File() { close(descriptor_); }
    File(const File &) = delete;
    File &operator=(const File &) = delete;

    int get() const { return descriptor_; }

  private:
    int descriptor_;
};

class Folder : public File {
  public:
    using Identity = std::pair<dev_t, ino_t>;

    explicit Folder(const std::string &path, int from = AT_FDCWD)
        : File(from, path.c_str(), O_RDONLY | O_DIRECTORY)
    {
    }

    // Makes what lies in it survive power loss.
    void sync() const
    {
        if (fsync(get()) != 0)
            fail(errno, "sync a folder");
    }

    Identity identity() const
    {
        struct stat found;
        if (fstat(get(), &found) != 0)
            fail(errno, "look at a folder");
        return {found.st_dev, found.st_ino};
    }

    // Whether this process has a file of it open, through whatever code.
    bool has_open(const char *name) const
    {
        struct stat wanted, found;
        std::error_code none;
        if (fstatat(get(), name, &wanted, 0) != 0)
            return false;
        for (const auto &entry : std::filesystem::directory_iterator("/proc/self/fd", none)) {
            if (stat(entry.path().c_str(), &found) == 0 && found.st_dev == wanted.st_dev &&
                found.st_ino == wanted.st_ino)
                return true;
        }
        return false;
    }
};

// A file that is locked. It has a descriptor of its own, so that threads exclude each other too.
class FileLock {
  public:
    FileLock(const Folder &folder, const char *name, const Deadline &deadline)
        : file_(folder.get(), name, O_RDWR | O_CREAT | O_NOFOLLOW)
    {
        while (flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK && errno != EINTR)
                fail(errno, "lock a file");
            deadline.check();
            std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
    }
    // Explicitly: a child that is being forked may share the descriptor for a moment.
    ~FileLock() { flock(file_.get(), LOCK_UN); }

  private:
    File file_;
};

} // namespace lmdb_backend
