// Keys and values within a transaction. What the databases hold is at the top of `backend.cpp`.
#pragma once

#include <lmdb.h>

#include <optional>
#include <string>
#include <string_view>

#include "answer.hpp"
#include "environment.hpp"

namespace lmdb_backend {

// ---- What LMDB takes and gives -----------------------------------------------------------------
// LMDB takes what it only reads as `void *` too.
inline MDB_val val(std::string_view bytes)
{
    return {bytes.size(), const_cast<char *>(bytes.data())};
}

inline std::string_view view(const MDB_val &bytes)
{
    return {static_cast<const char *>(bytes.mv_data), bytes.mv_size};
}

template <size_t SIZE> void put_number(uint8_t *into, uint64_t number)
{
    for (size_t i = 0; i < SIZE; i++)
        into[i] = static_cast<uint8_t>(number >> (8 * (SIZE - 1 - i)));
}

template <size_t SIZE> uint64_t get_number(const uint8_t *from)
{
    uint64_t number = 0;
    for (size_t i = 0; i < SIZE; i++)
        number = number << 8 | from[i];
    return number;
}

class Number {
  public:
    explicit Number(uint64_t number) : val_{sizeof bytes_, bytes_}
    {
        put_number<sizeof bytes_>(bytes_, number);
    }
    Number(const Number &) = delete;
    Number &operator=(const Number &) = delete;

    MDB_val *val() { return &val_; }

  private:
    uint8_t bytes_[8];
    MDB_val val_;
};

// ---- Rows of the index -------------------------------------------------------------------------
// What a row says of a key and its value.
struct Entry {
    uint64_t rest, version, size, modified_ms;

    oxiflow_version token() const;
};

// A row as it is written.
class Row {
  public:
    Row(std::string_view key, const Entry &entry);
    Row(const Row &) = delete;
    Row &operator=(const Row &) = delete;

    MDB_val key, data;

  private:
    uint8_t bytes_[26];
};

// Goes over the rows in the order of their keys.
class Cursor {
  public:
    explicit Cursor(const Transaction &txn);
    ~Cursor() { mdb_cursor_close(cursor_); }
    Cursor(const Cursor &) = delete;
    Cursor &operator=(const Cursor &) = delete;

    // Goes to the first key that is not before this one, or to one that is little before.
    bool seek(std::string_view from);
    bool next() { return move(MDB_NEXT); }
    // Goes to exactly this key.
    bool find(std::string_view wanted);

    std::string key() const;
    Entry entry() const;

  private:
    bool move(MDB_cursor_op how);

    MDB_cursor *cursor_ = nullptr;
    MDB_val first_ = {0, nullptr}, row_ = {0, nullptr};
};

// ---- Reads and changes -------------------------------------------------------------------------
// What is wrong with the length of a key, or null.
const char *wrong_key(oxiflow_slice key);

std::optional<Entry> find(const Transaction &txn, std::string_view key);

// The value of a key, where it lies in the map.
std::string_view read_value(const Transaction &txn, const Entry &entry);

// What became of a change. One that is refused has touched nothing.
struct Outcome {
    int32_t status;
    oxiflow_version version = {};
    std::string_view message = {};

    bool is_refusal() const { return status != OXIFLOW_OK && status != OXIFLOW_NOT_FOUND; }
};

// The transaction of the only one that writes.
class Writer {
  public:
    Writer(Environment &env, const Deadline &deadline);

    // Makes a change, if what it expects holds (C3). What it throws is of the whole transaction.
    Outcome change(const oxiflow_change &change);
    void commit();

  private:
    void remove(std::string_view key, const Entry &entry);
    oxiflow_version add(std::string_view key, std::string_view value);

    const Deadline &deadline_;
    FileLock lock_;
    Transaction txn_;
    uint64_t committed_, last_;
};

} // namespace lmdb_backend
