#include "program.h"

/* list<string> and list<tuple<string, string>> in memory are arrays of address and length: arrays of slices. */
struct list {
    struct slice *items;
    size_t count;
};

static struct list arguments(void) {
    static struct list all;
    if (!all.items) {
        land_anywhere();
        wasi_get_arguments(&all);
    }
    return all;
}

size_t argument_count(void) {
    return arguments().count;
}

struct slice argument(size_t index) {
    struct list all = arguments();
    return index < all.count ? all.items[index] : (struct slice){NULL, 0};
}

struct slice option(const char *name, struct slice otherwise) {
    for (size_t i = 1; i + 1 < argument_count(); i++)
        if (slice_equal(argument(i), slice_of(name))) return argument(i + 1);
    return otherwise;
}

uint64_t option_number(const char *name, uint64_t otherwise, uint64_t most) {
    struct slice text = option(name, (struct slice){NULL, 0});
    uint64_t number = otherwise;
    if (text.at && !parse_number(text, most, &number)) fail("not a number that this option takes: ", text);
    return number;
}

bool environment_at(size_t index, struct slice *name, struct slice *value) {
    static struct list all;
    if (!all.items) {
        land_anywhere();
        wasi_get_environment(&all);
    }
    if (index >= all.count) return false;
    *name = all.items[2 * index];
    *value = all.items[2 * index + 1];
    return true;
}

struct slice environment(const char *wanted) {
    struct slice name, value;
    for (size_t i = 0; environment_at(i, &name, &value); i++)
        if (slice_equal(name, slice_of(wanted))) return value;
    return (struct slice){NULL, 0};
}

/* blocking-write-and-flush takes at most 4096 bytes; its answer is result<_, stream-error>: case at 0, and for an error
 * its case at 4 and the error's handle at 8. An output that is gone is no reason to stop serving. */
static void write_all(handle output, struct slice text) {
    while (text.length) {
        uint32_t answer[3];
        size_t part = text.length < 4096 ? text.length : 4096;
        wasi_write_and_flush(output, text.at, part, answer);
        if (*(uint8_t *)&answer[0]) {
            if (!*(uint8_t *)&answer[1]) wasi_drop_error((handle)answer[2]);
            return;
        }
        text.at += part;
        text.length -= part;
    }
}

void print(struct slice text) {
    static handle output;
    if (!output) output = wasi_get_stdout();
    write_all(output, text);
}

void print_error(struct slice text) {
    static handle output;
    if (!output) output = wasi_get_stderr();
    write_all(output, text);
}

_Noreturn void fail(const char *what, struct slice why) {
    char line[512];
    struct builder text = {line, 0, sizeof line - 1, false};
    add(&text, argument(0));
    add_text(&text, ": ");
    add_text(&text, what);
    add(&text, why);
    line[text.length++] = '\n';
    print_error((struct slice){line, text.length});
    wasi_exit(1);
}

__attribute__((export_name("wasi:cli/run@0.2.0#run"))) int32_t wasi_run(void) {
    return run() ? 0 : 1;
}
