#include "text.h"

struct slice slice_of(const char *text) {
    return (struct slice){text, strlen(text)};
}

bool slice_equal(struct slice left, struct slice right) {
    return left.length == right.length && memcmp(left.at, right.at, left.length) == 0;
}

static char lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

bool slice_equal_ignoring_case(struct slice left, struct slice right) {
    if (left.length != right.length) return false;
    for (size_t i = 0; i < left.length; i++)
        if (lower(left.at[i]) != lower(right.at[i])) return false;
    return true;
}

static bool blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

struct slice slice_trimmed(struct slice text) {
    while (text.length && blank(text.at[0])) text.at++, text.length--;
    while (text.length && blank(text.at[text.length - 1])) text.length--;
    return text;
}

struct slice slice_cut(struct slice *rest, char separator) {
    size_t length = 0;
    while (length < rest->length && rest->at[length] != separator) length++;
    struct slice first = {rest->at, length};
    size_t used = length < rest->length ? length + 1 : length;
    rest->at += used;
    rest->length -= used;
    return first;
}

bool parse_number(struct slice text, uint64_t most, uint64_t *number) {
    uint64_t value = 0;
    if (!text.length) return false;
    for (size_t i = 0; i < text.length; i++) {
        char c = text.at[i];
        if (c < '0' || c > '9') return false;
        if (value > (most - (uint64_t)(c - '0')) / 10) return false;
        value = value * 10 + (uint64_t)(c - '0');
    }
    *number = value;
    return value <= most;
}

void add(struct builder *to, struct slice text) {
    size_t left = to->room - to->length;
    if (text.length > left) {
        text.length = left;
        to->overflow = true;
    }
    memcpy(to->at + to->length, text.at, text.length);
    to->length += text.length;
}

void add_text(struct builder *to, const char *text) {
    add(to, slice_of(text));
}

void add_number(struct builder *to, uint64_t number) {
    char digits[20];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    add(to, (struct slice){digits + at, sizeof digits - at});
}
