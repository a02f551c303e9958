#include "streams.h"

static u32 joined_bytes, text_at;
__attribute__((export_name("kernel_streams_bytes"))) u32 kernel_streams_bytes(void) { return joined_bytes; }
__attribute__((export_name("kernel_text_at"))) u32 kernel_text_at(void) { return text_at; }

void join_streams(const bytes *s, u32 n, u32 first_text, bytes *joined) {
    u64 all = 0;
    for (u32 i = 0; i < n; i++) all += s[i].n + 10ull;
    if (all > 0xffffffff) fail(E_MEMORY);
    RESERVE(*joined, all);
    for (u32 i = 0; i < n; i++) put_number(joined, s[i].n);
    for (u32 i = 0; i < n; i++) {
        if (i == first_text) text_at = joined->n;
        put(joined, s[i].at, s[i].n);
    }
    joined_bytes = joined->n;
}

void split_streams(const u8 *b, u32 size, reader *s, u32 n) {
    reader all = {b, 0, size};
    for (u32 i = 0; i < n; i++) s[i].end = take_below(&all, (u64)size + 1);
    for (u32 i = 0; i < n; i++) s[i] = (reader){take_bytes(&all, s[i].end), 0, s[i].end};
    if (all.p != all.end) fail(E_STREAM);
}

u32 *map_table(const module *o, const label_map *functions, const u32s *new_elements, u32 new_base, u32 *count) {
    u32 functions_in_all = functions->label_of_new.n;
    u32 *slot_of = allocate((u64)functions_in_all * 4 + 4);
    for (u32 k = 0; k < new_elements->n; k++) {
        u32 f = new_elements->at[k];
        if (f < functions_in_all && !slot_of[f]) slot_of[f] = new_base + k + 1;
    }
    *count = o->elements.n ? o->element_base + o->elements.n : 0;
    u32 *table = allocate((u64)*count * 4 + 4);
    for (u32 s = 0; s < o->element_base && s < *count; s++) table[s] = s;
    i64 shift = (i64)new_base - o->element_base;
    for (u32 k = 0; k < o->elements.n; k++) {
        u32 slot = o->element_base + k, old = o->elements.at[k];
        u32 f = old < functions->guess.n ? functions->guess.at[old] : NOWHERE;
        i64 to = f < functions_in_all && slot_of[f] ? (i64)slot_of[f] - 1 : slot + shift;
        shift = to - slot;
        table[slot] = to > 0 ? (u32)to : 0;
    }
    return table;
}
