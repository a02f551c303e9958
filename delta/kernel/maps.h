/* Where things of the base went in the target: functions, types, table slots and data addresses.

   Functions and types get *labels*: the old index for what exists in both modules, further numbers for what is new.
   Inserted code is written with labels and old addresses, so that the last stage's compressor finds it in the base. */
#ifndef LOWCLOUD_MAPS_H
#define LOWCLOUD_MAPS_H

#include "module.h"

typedef struct {
    u32 n, o, len; /* offsets into the joined payloads of the new and the old module, and how many bytes */
} cover;
typedef VEC(cover) covers;

/* How a new function is made from the old ones; the two flags are above every index. */
#define REF_NONE 0xffffffffu   /* from nothing */
#define REF_RAW 0xfffffffeu    /* its body is not understood and travels as bytes */
#define REF_REPEATED 0x40000000u /* a second or later use of the same old function */
#define REF_INDEX 0x3fffffffu
INLINE int ref_is_old(u32 ref) { return ref < REF_RAW; }

typedef struct {
    u32s new_of_label, label_of_new;
    u32s guess;  /* per old index: the likely new index, also for what has no counterpart */
    u32 old_count;
} label_map;

#define NOWHERE 0xffffffffu

/* Pairs equal hashes in order of appearance; imports first, then references. */
void map_functions(label_map *m, const module *o, const module *n, u32 functions, const u32 *refs);
void map_types(label_map *m, const module *o, const module *n);

INLINE u32 label_to_new(const label_map *m, u64 label) {
    if (label >= m->new_of_label.n) fail(E_STREAM);
    return m->new_of_label.at[label];
}

/* Ascending keys, with a coarse index that makes a search take about as long whatever their number is. */
typedef struct {
    u64 *keys;
    u32 n;
    u32 *first; /* per stretch of 1 << shift from the lowest key: how many keys are below it; null: not indexed */
    u32 shift;
} row;

typedef struct {
    const segment *segs;
    u32s by_address; /* indices of segments with a known address, ascending */
    row addresses;   /* theirs */
    row payloads;    /* where each segment's bytes begin */
} address_side;

typedef struct {
    covers by_new; /* ascending in n, disjoint in n */
    covers by_old; /* ascending in o, disjoint in o: where covers overlap, the longest wins */
    row new_starts, old_starts; /* of by_new and of by_old */
    address_side old_side, new_side;
    i64 low, high; /* old values in [low, high) may be addresses; above the data lies the bss */
    i64 old_end, new_end;
} address_map;

/* Large enough for the bss of most programs; a value above is taken for a number. */
#define BSS_BYTES (1 << 21)

void map_addresses(address_map *m, const covers *c, const module *o, const segments *new_segs);
i64 address_forward(const address_map *m, i64 old_address);
i64 address_back(const address_map *m, i64 new_address);

/* Written addresses: an old address that maps to the meant one, else the new address beyond these marks. */
#define ESCAPED (3ll << 32)
#define ESCAPED_PADDED (2ll << 32)
i64 address_label(const address_map *m, i64 new_address);
INLINE i64 address_of_label(const address_map *m, i64 label) {
    return label >= ESCAPED_PADDED ? (i64)(u32)label : address_forward(m, label);
}

/* Go: program counters are (defined function + 0x1000) << 16 | block, and like pointers are 64-bit constants. */
enum { GO_FIRST_PC = 0x10000000, GO_FIRST_FUNCTION = 0x1000 };

typedef struct {
    const address_map *addresses;
    const label_map *functions;
    i64 old_imports, new_imports;
} wide_map;

/* As for addresses; a constant of the range of the mark itself is not accepted by the reader of bodies. */
i64 wide_label(const wide_map *m, i64 new_value);
i64 wide_of_label(const wide_map *m, i64 label);
INLINE int is_wide_mark(i64 v) { return v >= ESCAPED && v < ESCAPED + (1ll << 32); }

#endif
