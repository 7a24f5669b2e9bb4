// How keys, values and versions are kept in the databases.
#include "records.hpp"

#include <chrono>
#include <cstring>

namespace lmdb_backend {
namespace {

// How much of a key LMDB takes, less than the contract by a byte.
constexpr size_t FIRST_BYTES = 511;

[[noreturn]] void damaged(const char *what)
{
    throw Failure{OXIFLOW_CORRUPT, what};
}

uint64_t rest_of(std::string_view key)
{
    return key.size() > FIRST_BYTES ? static_cast<uint8_t>(key[FIRST_BYTES]) + uint64_t{1} : 0;
}

uint64_t now_ms()
{
    auto since = std::chrono::system_clock::now().time_since_epoch();
    auto passed = std::chrono::duration_cast<std::chrono::milliseconds>(since).count();
    return passed < 0 ? OXIFLOW_UNKNOWN : static_cast<uint64_t>(passed);
}

} // namespace

// ---- Rows of the index -------------------------------------------------------------------------
// Big-endian, so that the bytes of a version read like the number.
oxiflow_version Entry::token() const
{
    oxiflow_version token = {8, {}};
    put_number<8>(token.bytes, version);
    return token;
}

Row::Row(std::string_view whole_key, const Entry &entry)
    : key(val(whole_key.substr(0, FIRST_BYTES))), data{sizeof bytes_, bytes_}
{
    put_number<2>(bytes_, entry.rest);
    put_number<8>(bytes_ + 2, entry.version);
    put_number<8>(bytes_ + 10, entry.size);
    put_number<8>(bytes_ + 18, entry.modified_ms);
}

Cursor::Cursor(const Transaction &txn)
{
    check(mdb_cursor_open(txn.get(), txn.env.index, &cursor_), "open a cursor");
}

bool Cursor::move(MDB_cursor_op how)
{
    int code = mdb_cursor_get(cursor_, &first_, &row_, how);
    if (code != MDB_NOTFOUND)
        check(code, "read the index");
    return code == MDB_SUCCESS;
}

bool Cursor::seek(std::string_view from)
{
    first_ = val(from.substr(0, FIRST_BYTES));
    return move(from.empty() ? MDB_FIRST : MDB_SET_RANGE);
}

bool Cursor::find(std::string_view wanted)
{
    uint8_t rest[2];
    put_number<sizeof rest>(rest, rest_of(wanted));
    first_ = val(wanted.substr(0, FIRST_BYTES));
    row_ = {sizeof rest, rest};
    return move(MDB_GET_BOTH_RANGE) && entry().rest == rest_of(wanted);
}

Entry Cursor::entry() const
{
    auto *bytes = static_cast<const uint8_t *>(row_.mv_data);
    if (row_.mv_size != 26 || get_number<2>(bytes) > 256)
        damaged("a row of the index is damaged");
    return {get_number<2>(bytes), get_number<8>(bytes + 2), get_number<8>(bytes + 10),
            get_number<8>(bytes + 18)};
}

std::string Cursor::key() const
{
    std::string key(view(first_));
    if (uint64_t rest = entry().rest; rest > 0)
        key.push_back(static_cast<char>(rest - 1));
    return key;
}

// ---- Reads and changes -------------------------------------------------------------------------
const char *wrong_key(oxiflow_slice key)
{
    bool is_right = key.len > 0 && key.len <= OXIFLOW_MAX_KEY_BYTES;
    return is_right ? nullptr : "a key has 1 to 512 bytes";
}

std::optional<Entry> find(const Transaction &txn, std::string_view key)
{
    Cursor cursor(txn);
    return cursor.find(key) ? std::optional(cursor.entry()) : std::nullopt;
}

std::string_view read_value(const Transaction &txn, const Entry &entry)
{
    MDB_val value;
    int code = mdb_get(txn.get(), txn.env.values, Number(entry.version).val(), &value);
    if (code == MDB_NOTFOUND || (code == MDB_SUCCESS && value.mv_size != entry.size))
        damaged("the value of a key is damaged");
    check(code, "read a value");
    return view(value);
}

Writer::Writer(Environment &env, const Deadline &deadline)
    : deadline_(deadline), lock_(env.lock_writers(deadline)), txn_(env, 0, deadline)
{
    env.clear_dead_readers();
    MDB_val name = val("version"), version;
    check(mdb_get(txn_.get(), env.meta, &name, &version), "read the last version");
    if (version.mv_size != 8)
        damaged("the last version is damaged");
    committed_ = last_ = get_number<8>(static_cast<const uint8_t *>(version.mv_data));
}

Outcome Writer::change(const oxiflow_change &change)
{
    deadline_.check();
    if (const char *wrong = wrong_key(change.key))
        return {OXIFLOW_INVALID, {}, wrong};
    if (change.kind != OXIFLOW_CHANGE_PUT && change.kind != OXIFLOW_CHANGE_DELETE)
        return {OXIFLOW_INVALID, {}, "the kind of a change makes no sense"};
    if (change.value.len > OXIFLOW_MIN_MAX_VALUE_BYTES)
        return {OXIFLOW_TOO_LARGE, {}, "values have up to 16 MiB"};
    auto key = view(change.key);
    auto entry = find(txn_, key);
    auto current = entry ? entry->token() : oxiflow_version{};
    bool holds;
    switch (change.expected.kind) {
    case OXIFLOW_EXPECTED_ANY:
        holds = true;
        break;
    case OXIFLOW_EXPECTED_ABSENT:
        holds = !entry;
        break;
    case OXIFLOW_EXPECTED_VERSION:
        holds = entry && std::memcmp(&current, &change.expected.version, sizeof current) == 0;
        break;
    default:
        return {OXIFLOW_INVALID, {}, "the expectation of a change makes no sense"};
    }
    if (!holds)
        return {OXIFLOW_CONFLICT, current};
    if (entry)
        remove(key, *entry);
    if (change.kind == OXIFLOW_CHANGE_PUT)
        return {OXIFLOW_OK, add(key, view(change.value))};
    return {entry ? OXIFLOW_OK : OXIFLOW_NOT_FOUND};
}

void Writer::remove(std::string_view key, const Entry &entry)
{
    Row row(key, entry);
    check(mdb_del(txn_.get(), txn_.env.index, &row.key, &row.data), "remove a key");
    check(mdb_del(txn_.get(), txn_.env.values, Number(entry.version).val(), nullptr),
          "remove a value");
}

oxiflow_version Writer::add(std::string_view key, std::string_view value)
{
    Entry entry = {rest_of(key), ++last_, value.size(), now_ms()};
    Row row(key, entry);
    MDB_val data = val(value);
    check(mdb_put(txn_.get(), txn_.env.index, &row.key, &row.data, 0), "write a key");
    // To the end, as no version is greater.
    check(mdb_put(txn_.get(), txn_.env.values, Number(last_).val(), &data, MDB_APPEND),
          "write a value");
    return entry.token();
}

void Writer::commit()
{
    if (last_ != committed_) {
        MDB_val name = val("version");
        check(mdb_put(txn_.get(), txn_.env.meta, &name, Number(last_).val(), 0),
              "write the last version");
    }
    deadline_.check();
    txn_.commit();
}

} // namespace lmdb_backend
