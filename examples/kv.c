/* A key-value server over TCP that keeps what it has acknowledged.
 *
 * It listens where LOWCLOUD_LISTEN_KV says (`address:port`, from the definition's `listen`), or where
 * `--address 0.0.0.0 --port 6379` do, and keeps its data in `--data /data`.
 *
 * One request per line, one line of answer: `GET key` (VALUE value, or NONE), `SET key value` (OK), `DEL key` (OK, or
 * NONE), `COUNT` (COUNT n). A key has no spaces; a value is the rest of the line.
 *
 * Everything is in memory and in a log on the volume. A change is appended and made durable before it is acknowledged;
 * the changes of all requests of one turn share one sync. At start the log is replayed up to the first record that is
 * not whole: a torn record was never acknowledged. When most of the log is outdated it is written afresh beside the old
 * one and renamed over it. If the volume fails, the program ends: what is on it decides what is true.
 */
#include "lib/file.h"
#include "lib/program.h"
#include "lib/serve.h"

enum { MAX_KEY = 256, MAX_VALUE = 4096, MAX_ANSWER = MAX_VALUE + 64 };
enum { BATCH_BYTES = 1 << 18, SMALLEST_REWRITE_BYTES = 1 << 20 };

/* --- the table: open addressing, linear probing --- */

struct entry {
    uint32_t hash, key_length, value_length;
    char bytes[]; /* key, value */
};

static struct {
    struct entry **slots;
    size_t room, used, live; /* `used` counts gaps left by deletions too */
    uint64_t live_bytes;     /* what the log would hold if it held only live entries */
} table;

static struct entry gap; /* stands where an entry was deleted */

static struct slice key_of(const struct entry *entry) {
    return (struct slice){entry->bytes, entry->key_length};
}

static struct slice value_of(const struct entry *entry) {
    return (struct slice){entry->bytes + entry->key_length, entry->value_length};
}

static size_t size_of(const struct entry *entry) {
    return sizeof *entry + entry->key_length + entry->value_length;
}

static uint32_t hash_of(struct slice key) { /* FNV-1a */
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < key.length; i++) hash = (hash ^ (uint8_t)key.at[i]) * 16777619u;
    return hash;
}

/* The key's slot, or the free slot where it belongs. */
static struct entry **find(struct slice key, uint32_t hash) {
    struct entry **free_slot = NULL;
    for (size_t i = hash & (table.room - 1);; i = (i + 1) & (table.room - 1)) {
        struct entry *entry = table.slots[i];
        if (!entry) return free_slot ? free_slot : &table.slots[i];
        if (entry == &gap) free_slot = free_slot ? free_slot : &table.slots[i];
        else if (entry->hash == hash && slice_equal(key_of(entry), key)) return &table.slots[i];
    }
}

static bool holds(struct entry **slot) {
    return *slot && *slot != &gap;
}

/* Keeps the table at most half full. False where there is no memory for that. */
static bool make_room(void) {
    if (table.room && table.used < table.room / 2) return true;
    size_t old_room = table.room, room = 1024;
    while (room < table.live * 4) room *= 2;
    struct entry **old = table.slots, **slots = heap_take(room * sizeof *slots);
    if (!slots) return false;
    memset(slots, 0, room * sizeof *slots);
    table.slots = slots;
    table.room = room;
    table.used = table.live;
    for (size_t i = 0; i < old_room; i++)
        if (holds(&old[i])) *find(key_of(old[i]), old[i]->hash) = old[i];
    if (old) heap_free(old, old_room * sizeof *old);
    return true;
}

/* --- records: checksum of the rest, key's length, value's length (or DELETED), key, value --- */

#define DELETED UINT32_MAX

struct head {
    uint32_t checksum, key_length, value_length;
};

static uint32_t crc32(uint32_t sum, const void *bytes, size_t length) { /* ISO 3309, reflected */
    const uint8_t *at = bytes;
    sum = ~sum;
    for (size_t i = 0; i < length; i++) {
        sum ^= at[i];
        for (int bit = 0; bit < 8; bit++) sum = sum >> 1 ^ (sum & 1 ? 0xEDB88320u : 0);
    }
    return ~sum;
}

static uint32_t checksum_of(const struct head *head, const char *bytes, size_t length) {
    uint32_t sum = crc32(0, &head->key_length, sizeof *head - sizeof head->checksum);
    return crc32(sum, bytes, length);
}

static size_t record_size(struct slice key, size_t value_length) {
    return sizeof(struct head) + key.length + value_length;
}

static bool set(struct slice key, struct slice value) {
    if (!make_room()) return false;
    uint32_t hash = hash_of(key);
    struct entry *entry = heap_take(sizeof *entry + key.length + value.length);
    if (!entry) return false;
    struct entry **slot = find(key, hash);
    if (holds(slot)) {
        table.live_bytes -= record_size(key, (*slot)->value_length);
        heap_free(*slot, size_of(*slot));
    } else {
        table.live++;
        if (!*slot) table.used++;
    }
    *entry = (struct entry){hash, (uint32_t)key.length, (uint32_t)value.length};
    memcpy(entry->bytes, key.at, key.length);
    memcpy(entry->bytes + key.length, value.at, value.length);
    table.live_bytes += record_size(key, value.length);
    *slot = entry;
    return true;
}

static void delete(struct entry **slot) {
    table.live--;
    table.live_bytes -= record_size(key_of(*slot), (*slot)->value_length);
    heap_free(*slot, size_of(*slot));
    *slot = &gap;
}

/* --- the log --- */

static struct {
    char path_text[256], new_path_text[256], directory_text[256];
    struct slice path, new_path, directory;
    handle file;
    uint64_t size;       /* of the durable part */
    size_t batch_length; /* of what is to follow it */
    char batch[BATCH_BYTES];
} journal;

static void check(int error, const char *what) {
    if (error != FILE_OK) fail(what, file_error_name(error));
}

static void write_batch(void) {
    check(file_write(journal.file, journal.size, journal.batch, journal.batch_length), "cannot write the log: ");
    journal.size += journal.batch_length;
    journal.batch_length = 0;
}

static void append(struct slice key, const struct slice *value) {
    struct head head = {0, (uint32_t)key.length, value ? (uint32_t)value->length : DELETED};
    size_t length = key.length + (value ? value->length : 0);
    if (journal.batch_length + sizeof head + length > BATCH_BYTES) write_batch();
    char *at = journal.batch + journal.batch_length, *bytes = at + sizeof head;
    memcpy(bytes, key.at, key.length);
    if (value) memcpy(bytes + key.length, value->at, value->length);
    head.checksum = checksum_of(&head, bytes, length);
    memcpy(at, &head, sizeof head);
    journal.batch_length += sizeof head + length;
}

/* Writes the live entries to a new log and puts it in the place of the old one. The new one is durable before the
 * rename, the rename before anything is acknowledged that only the new one holds. */
static void rewrite(void) {
    handle old = journal.file, directory;
    int how = FILE_READ | FILE_WRITE | FILE_CREATE | FILE_TRUNCATE;
    check(file_open(journal.new_path, how, &journal.file), "cannot make a new log: ");
    journal.size = 0;
    for (size_t i = 0; i < table.room; i++) {
        if (!holds(&table.slots[i])) continue;
        struct slice value = value_of(table.slots[i]);
        append(key_of(table.slots[i]), &value);
    }
    write_batch();
    check(file_sync(journal.file), "cannot sync the new log: ");
    check(file_rename(journal.new_path, journal.path), "cannot replace the log: ");
    check(file_open(journal.directory, FILE_READ | FILE_DIRECTORY, &directory), "cannot open the volume: ");
    check(directory_sync(directory), "cannot sync the volume: ");
    file_close(directory);
    file_close(old);
}

static bool mostly_outdated(void) {
    return journal.size > SMALLEST_REWRITE_BYTES && journal.size > 3 * table.live_bytes;
}

static bool unsynced;

static void commit(void) {
    if (!unsynced) return;
    write_batch();
    check(file_sync(journal.file), "cannot sync the log: ");
    unsynced = false;
    if (mostly_outdated()) rewrite();
}

/* Applies the record at the start of `bytes`. Returns its length, or 0 where it is not whole or not right. */
static size_t replay_record(struct slice bytes) {
    struct head head;
    if (bytes.length < sizeof head) return 0;
    memcpy(&head, bytes.at, sizeof head);
    bool deleted = head.value_length == DELETED;
    if (!head.key_length || head.key_length > MAX_KEY || (!deleted && head.value_length > MAX_VALUE)) return 0;
    size_t length = head.key_length + (deleted ? 0 : head.value_length);
    const char *at = bytes.at + sizeof head;
    if (bytes.length - sizeof head < length || checksum_of(&head, at, length) != head.checksum) return 0;
    struct slice key = {at, head.key_length};
    if (deleted) {
        struct entry **slot = table.room ? find(key, hash_of(key)) : NULL;
        if (slot && holds(slot)) delete(slot);
    } else if (!set(key, (struct slice){at + head.key_length, head.value_length})) {
        fail("the data does not fit into memory", SLICE(""));
    }
    return sizeof head + length;
}

/* Reads the log in pieces (the batch's room serves as buffer) and returns how many bytes after the last whole record
 * were cut off. */
static uint64_t replay(void) {
    uint64_t offset = 0;
    size_t held = 0, part;
    do {
        int error = file_read(journal.file, offset + held, journal.batch + held, BATCH_BYTES - held, &part);
        check(error, "cannot read the log: ");
        held += part;
        size_t used = 0, record;
        while ((record = replay_record((struct slice){journal.batch + used, held - used}))) used += record;
        memmove(journal.batch, journal.batch + used, held - used);
        held -= used;
        offset += used;
    } while (part && held < sizeof(struct head) + MAX_KEY + MAX_VALUE);
    journal.size = offset;
    uint64_t torn = held;
    while (part) { /* a record that is wrong in the middle: what comes after it is cut off as well */
        check(file_read(journal.file, offset + torn, journal.batch, BATCH_BYTES, &part), "cannot read the log: ");
        torn += part;
    }
    if (torn) check(file_set_size(journal.file, offset), "cannot cut the log: ");
    return torn;
}

static struct slice path_below(struct slice directory, const char *name, char *text, size_t room) {
    struct builder path = {text, 0, room, false};
    add(&path, directory);
    add_text(&path, name);
    if (path.overflow) fail("--data is too long: ", directory);
    return (struct slice){text, path.length};
}

static uint64_t open_journal(struct slice directory) {
    journal.directory = path_below(directory, "", journal.directory_text, sizeof journal.directory_text);
    journal.path = path_below(directory, "/kv.log", journal.path_text, sizeof journal.path_text);
    journal.new_path = path_below(directory, "/kv.log.new", journal.new_path_text, sizeof journal.new_path_text);
    check(file_open(journal.path, FILE_READ | FILE_WRITE | FILE_CREATE, &journal.file), "cannot open the log: ");
    uint64_t torn = replay();
    if (mostly_outdated()) rewrite();
    return torn;
}

/* --- the protocol --- */

static void answer_get(struct connection *connection, struct slice key) {
    struct entry **slot = find(key, hash_of(key));
    if (!holds(slot)) {
        respond(connection, SLICE("NONE\n"));
        return;
    }
    respond(connection, SLICE("VALUE "));
    respond(connection, value_of(*slot));
    respond(connection, SLICE("\n"));
}

static void answer_set(struct connection *connection, struct slice key, struct slice value) {
    if (value.length > MAX_VALUE) {
        respond(connection, SLICE("ERROR the value is longer than 4096 bytes\n"));
    } else if (!set(key, value)) {
        respond(connection, SLICE("ERROR no memory\n"));
    } else {
        append(key, &value);
        unsynced = true;
        respond(connection, SLICE("OK\n"));
    }
}

static void answer_del(struct connection *connection, struct slice key) {
    struct entry **slot = find(key, hash_of(key));
    if (!holds(slot)) {
        respond(connection, SLICE("NONE\n"));
        return;
    }
    delete(slot);
    append(key, NULL);
    unsynced = true;
    respond(connection, SLICE("OK\n"));
}

static void answer_count(struct connection *connection) {
    char text[32];
    struct builder line = {text, 0, sizeof text, false};
    add_text(&line, "COUNT ");
    add_number(&line, table.live);
    add_text(&line, "\n");
    respond(connection, (struct slice){text, line.length});
}

static void answer_line(struct connection *connection, struct slice line) {
    struct slice verb = slice_cut(&line, ' ');
    if (slice_equal(verb, SLICE("COUNT")) && !line.length) {
        answer_count(connection);
        return;
    }
    bool is_set = slice_equal(verb, SLICE("SET"));
    struct slice key = is_set ? slice_cut(&line, ' ') : line;
    bool bad_key = !key.length || key.length > MAX_KEY;
    if (!is_set)
        for (size_t i = 0; i < key.length; i++) bad_key |= key.at[i] == ' ';
    if (!is_set && !slice_equal(verb, SLICE("GET")) && !slice_equal(verb, SLICE("DEL")))
        respond(connection, SLICE("ERROR expected GET key, SET key value, DEL key or COUNT\n"));
    else if (bad_key) respond(connection, SLICE("ERROR a key has 1 to 256 bytes and no spaces\n"));
    else if (is_set) answer_set(connection, key, line);
    else if (verb.at[0] == 'G') answer_get(connection, key);
    else answer_del(connection, key);
}

static size_t answer(struct connection *connection, struct slice input) {
    struct slice rest = input;
    struct slice line = slice_cut(&rest, '\n');
    if (!has_room(connection, MAX_ANSWER)) return 0;
    if (line.length == input.length) {
        if (input.length < INPUT_BYTES) return 0;
        respond(connection, SLICE("ERROR the line is too long\n"));
        finish_connection(connection);
        return input.length;
    }
    size_t done = line.length + 1;
    if (line.length && line.at[line.length - 1] == '\r') line.length--;
    answer_line(connection, line);
    return done;
}

/* --- start --- */

static struct address address;
static uint64_t torn_bytes;

static void announce(void) {
    char text[256];
    struct builder line = {text, 0, sizeof text, false};
    add_text(&line, "kv listens on ");
    add_address(&line, &address);
    add_text(&line, ", ");
    add_number(&line, table.live);
    add_text(&line, " keys");
    if (torn_bytes) {
        add_text(&line, ", dropped ");
        add_number(&line, torn_bytes);
        add_text(&line, " bytes of an unfinished record");
    }
    add_text(&line, "\n");
    print((struct slice){line.at, line.length});
}

bool run(void) {
    static const struct protocol lines = {answer, commit};
    address = listen_address("LOWCLOUD_LISTEN_KV", 6379);
    if (!make_room()) fail("no memory", SLICE(""));
    torn_bytes = open_journal(option("--data", SLICE("/data")));
    fail("cannot listen: ", net_error_name(serve(&address, &lines, announce)));
}
