#include "text_find.h"

enum {
    BASE_SEED = 6, /* fewer bytes in a row cost as much to copy from far away as to write */
    TEXT_SEED = 4,
    NEAR_SEED = 3,
    LEAST_BITS = 12,
    MOST_BASE_BITS = 22,
    MOST_TEXT_BITS = 18,
    NEAR_BITS = 16,
};
#define NOWHERE_YET 0xffffffffu

static u32 hash_of(const u8 *p, u32 n, u32 bits) {
    u64 x;
    __builtin_memcpy(&x, p, 8);
    return (u32)((x << (64 - 8 * n)) * 0x9E3779B97F4A7C15ull >> (64 - bits));
}

static u32 bits_for(u32 n, u32 most) {
    u32 bits = LEAST_BITS;
    while (bits < most && 1u << bits < n) bits++;
    return bits;
}

static u32 *filled_with_nowhere(u32 bits) {
    u32 *at = allocate(4ull << bits);
    __builtin_memset(at, 0xff, 4ull << bits);
    return at;
}

/* Only the places of the base are kept whose hash occurs in the text: for most texts few, and finding them is one quick
   pass. Counted first, then put in their buckets. */
static void index_base(finder *f) {
    u32 bits = f->base_bits = bits_for(4 * (f->end - f->start), MOST_BASE_BITS), sum = 0;
    u8 *wanted = allocate((1ull << bits) / 8);
    u32 *ends = allocate((4ull << bits) + 4);
    for (u32 p = f->start; p + 8 <= f->end; p++) {
        u32 h = hash_of(f->b + p, BASE_SEED, bits);
        wanted[h >> 3] |= (u8)(1 << (h & 7));
    }
    for (u32 p = 0; p + 8 <= f->start; p++) {
        u32 h = hash_of(f->b + p, BASE_SEED, bits);
        if (wanted[h >> 3] >> (h & 7) & 1) ends[h + 1]++;
    }
    for (u32 h = 0; h <= 1u << bits; h++) ends[h] = sum += ends[h];
    f->bucketed = allocate(4ull * sum + 4);
    for (u32 p = 0; p + 8 <= f->start; p++) {
        u32 h = hash_of(f->b + p, BASE_SEED, bits);
        if (wanted[h >> 3] >> (h & 7) & 1) f->bucketed[ends[h]++] = p;
    }
    f->bucket_ends = ends; /* each start has moved to the end of its bucket */
}

void finder_open(finder *f, const u8 *b, u32 start, u32 end, u32 depth) {
    *f = (finder){.b = b, .start = start, .end = end, .depth = depth};
    index_base(f);
    f->text_bits = bits_for(end - start, MOST_TEXT_BITS);
    f->newest_four = filled_with_nowhere(f->text_bits);
    f->newest_three = filled_with_nowhere(NEAR_BITS);
    f->older = allocate(4ull * (end - start) + 4);
}

void finder_enter(finder *f, u32 p) {
    if (p + 8 > f->end) return;
    u32 four = hash_of(f->b + p, TEXT_SEED, f->text_bits);
    f->older[p - f->start] = f->newest_four[four];
    f->newest_four[four] = p;
    f->newest_three[hash_of(f->b + p, NEAR_SEED, NEAR_BITS)] = p;
}

static void offer(finder *f, u32 len, u32 from) { PUSH(f->found, ((occurrence){len, from})); }

static void find_in_text(finder *f, u32 p, u32 most) {
    u32 best = NEAR_SEED - 1, at = f->newest_three[hash_of(f->b + p, NEAR_SEED, NEAR_BITS)];
    if (at != NOWHERE_YET) {
        u32 len = equal_bytes(f->b + at, f->b + p, most);
        if (len > best) offer(f, best = len, at);
    }
    at = f->newest_four[hash_of(f->b + p, TEXT_SEED, f->text_bits)];
    for (u32 k = 0; at != NOWHERE_YET && k < f->depth && best < most; k++, at = f->older[at - f->start]) {
        if (f->b[at + best] != f->b[p + best]) continue;
        u32 len = equal_bytes(f->b + at, f->b + p, most);
        if (len > best) offer(f, best = len, at);
    }
}

/* From the nearest place outwards. */
static void find_in_base(finder *f, u32 p, u32 most, u32 near) {
    u32 h = hash_of(f->b + p, BASE_SEED, f->base_bits), best = BASE_SEED - 1;
    u32 first = h ? f->bucket_ends[h - 1] : 0, end = f->bucket_ends[h], lo = first, hi = end;
    while (lo < hi) {
        u32 middle = (lo + hi) / 2;
        if (f->bucketed[middle] < near) lo = middle + 1;
        else hi = middle;
    }
    for (u32 k = 0; k < f->depth; k++) {
        if (lo == first && hi == end) return;
        int up = lo == first || (hi < end && f->bucketed[hi] - near < near - f->bucketed[lo - 1]);
        u32 at = f->bucketed[up ? hi++ : --lo], room = copy_room(f, at, most);
        if (room <= best || f->b[at + best] != f->b[p + best]) continue;
        u32 len = equal_bytes(f->b + at, f->b + p, room);
        if (len > best) offer(f, best = len, at);
    }
}

void find_occurrences(finder *f, u32 p, u32 near) {
    u32 most = f->end - p;
    f->found.n = 0;
    if (most < 8) return;
    find_in_text(f, p, most);
    find_in_base(f, p, most, near);
}
