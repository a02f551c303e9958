/* What every part of the kernel stands on: integers, memory that is never freed, growing buffers, LEB128, failing.

   The kernel is called once per instance and then thrown away with its memory, so allocation is a bump pointer and
   every fresh byte is zero. Failing is a trap: the sandbox ends the call and the host turns it into a DeltaError, so no
   function needs an error path for hostile input. Host calls: none. */
#ifndef LOWCLOUD_BASE_H
#define LOWCLOUD_BASE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef int i32;
typedef long long i64;

#define INLINE static inline __attribute__((always_inline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Reasons, read by the host after a trap through `kernel_error`. Keep in step with delta/kernel_host.py. */
enum {
    E_NONE = 0,
    E_MEMORY = 1,    /* more memory asked for than the instance may have */
    E_MODULE = 2,    /* a module is malformed or uses a form that is not understood */
    E_STREAM = 3,    /* a stream ended early or holds an impossible value */
    E_OUTPUT = 4,    /* the output would be larger or smaller than announced */
};

_Noreturn void fail(u32 reason);

/* Zeroed memory, 16-byte aligned, valid to the end of the call. */
void *allocate(u64 bytes);

void copy_bytes(void *to, const void *from, u32 n);

/* Growing array of any element type. */
#define VEC(T)     \
    struct {       \
        T *at;     \
        u32 n;     \
        u32 room;  \
    }
void grow(void **at, u32 *room, u32 n, u32 more, u32 element_bytes);
#define RESERVE(v, more)                                                                     \
    do {                                                                                     \
        if (UNLIKELY((v).room - (v).n < (u32)(more)))                                        \
            grow((void **)&(v).at, &(v).room, (v).n, (u32)(more), (u32)sizeof(*(v).at));     \
    } while (0)
#define PUSH(v, x)              \
    do {                        \
        RESERVE(v, 1);          \
        (v).at[(v).n++] = (x);  \
    } while (0)

typedef VEC(u8) bytes;
typedef VEC(u32) u32s;
typedef VEC(u64) u64s;
typedef VEC(i64) i64s;

void put(bytes *out, const u8 *from, u32 n);

/* Sorts by key; ties keep their order, so both sides of a patch agree. */
typedef struct {
    u64 key;
    u32 value;
} pair;
void sort_pairs(pair *p, u32 n);

INLINE u64 zigzag(i64 v) { return ((u64)v << 1) ^ (u64)(v >> 63); }
INLINE i64 unzigzag(u64 v) { return (i64)(v >> 1) ^ -(i64)(v & 1); }

INLINE u32 uleb_bytes(u64 v) {
    u32 n = 1;
    while (v > 127) {
        v >>= 7;
        n++;
    }
    return n;
}

INLINE u32 sleb_bytes(i64 v) {
    u32 n = 1;
    while (v < -64 || v > 63) {
        v >>= 7;
        n++;
    }
    return n;
}

/* Writes to `to`, which has room for 10 bytes; returns how many were written. */
INLINE u32 write_uleb(u8 *to, u64 v) {
    u32 n = 0;
    while (v > 127) {
        to[n++] = (u8)(v | 128);
        v >>= 7;
    }
    to[n++] = (u8)v;
    return n;
}

INLINE u32 write_sleb(u8 *to, i64 v) {
    u32 n = 0;
    while (v < -64 || v > 63) {
        to[n++] = (u8)((v & 127) | 128);
        v >>= 7;
    }
    to[n++] = (u8)(v & 127);
    return n;
}

/* The 5-byte padded form that linkers leave room for. An arithmetic shift serves both signs. */
INLINE u32 write_padded(u8 *to, i64 v) {
    for (u32 i = 0; i < 4; i++) to[i] = (u8)(((v >> (7 * i)) & 127) | 128);
    to[4] = (u8)((v >> 28) & 127);
    return 5;
}

/* Reads at *p, not past `end`. Returns the number of bytes, 0 where there is no valid number. */
INLINE u32 read_uleb(const u8 *b, u32 p, u32 end, u64 *v) {
    u64 r = 0;
    for (u32 n = 0; n < 10 && p + n < end; n++) {
        u8 x = b[p + n];
        r |= (u64)(x & 127) << (7 * n);
        if (x < 128) {
            *v = r;
            return n + 1;
        }
    }
    return 0;
}

INLINE u32 read_sleb(const u8 *b, u32 p, u32 end, i64 *v) {
    u64 r = 0;
    for (u32 n = 0; n < 10 && p + n < end; n++) {
        u8 x = b[p + n];
        r |= (u64)(x & 127) << (7 * n);
        if (x < 128) {
            u32 bits = 7 * (n + 1);
            if (bits < 64 && (x & 64)) r |= ~0ull << bits;
            *v = (i64)r;
            return n + 1;
        }
    }
    return 0;
}

/* Canonical numbers of up to 8 bytes, read at once from a place that 8 readable bytes follow. Return the number of bytes,
   0 where the number is longer or padded. */
INLINE u32 short_number(const u8 *b, u64 *v) {
    u64 w;
    __builtin_memcpy(&w, b, 8);
    u64 ends = ~w & 0x8080808080808080ull;
    if (UNLIKELY(!ends)) return 0;
    u32 bits = (u32)__builtin_ctzll(ends) + 1;
    w &= 0x7f7f7f7f7f7f7f7full >> (64 - bits);
    w = (w & 0x007f007f007f007full) | (w & 0x7f007f007f007f00ull) >> 1;
    w = (w & 0x00003fff00003fffull) | (w & 0x3fff00003fff0000ull) >> 2;
    *v = (w & 0x0fffffffull) | (w & 0x0fffffff00000000ull) >> 4;
    return bits >> 3;
}

INLINE u32 short_uleb(const u8 *b, i64 *v) {
    if (LIKELY(b[0] < 128)) {
        *v = b[0];
        return 1;
    }
    u64 x;
    u32 n = short_number(b, &x);
    *v = (i64)x;
    return n > 1 && x >> (7 * (n - 1)) ? n : 0;
}

INLINE u32 short_sleb(const u8 *b, i64 *v) {
    if (LIKELY(b[0] < 128)) {
        *v = (i64)((u64)b[0] << 57) >> 57;
        return 1;
    }
    u64 x;
    u32 n = short_number(b, &x);
    if (UNLIKELY(n < 2)) return 0;
    *v = (i64)(x << (64 - 7 * n)) >> (64 - 7 * n);
    i64 left = *v >> (7 * (n - 1) - 1);
    return left != 0 && left != -1 ? n : 0;
}

/* The lowest 7 * n bits of v as n bytes, n at most 8; writes 8 bytes. */
INLINE void write_short(u8 *to, u64 v, u32 n) {
    u64 w = (v & 0x0fffffffull) | (v << 4 & 0x0fffffff00000000ull);
    w = (w & 0x00003fff00003fffull) | (w << 2 & 0x3fff00003fff0000ull);
    w = (w & 0x007f007f007f007full) | (w << 1 & 0x7f007f007f007f00ull);
    w |= 0x80808080808080ull & ((1ull << (8 * (n - 1))) - 1);
    __builtin_memcpy(to, &w, 8);
}

/* As write_uleb and write_sleb, for many numbers of any size; up to 10 bytes behind `to` are written. */
INLINE u32 write_uleb_quickly(u8 *to, u64 v) {
    u32 n = ((70u - (u32)__builtin_clzll(v | 1)) * 37) >> 8;
    if (UNLIKELY(v >> 56)) return write_uleb(to, v);
    write_short(to, v, n);
    return n;
}

INLINE u32 write_sleb_quickly(u8 *to, i64 v) {
    u64 size = (u64)(v ^ v >> 63);
    u32 n = ((71u - (u32)__builtin_clzll(size | 1) - (size == 0)) * 37) >> 8;
    if (UNLIKELY(size >> 55)) return write_sleb(to, v);
    write_short(to, (u64)v & ~0ull >> (64 - 7 * n), n);
    return n;
}

INLINE u32 word_at(const u8 *b) {
    u32 v;
    __builtin_memcpy(&v, b, 4);
    return v;
}

INLINE u64 mix(u64 h) {
    h *= 0x9E3779B97F4A7C15ull;
    return h ^ (h >> 32);
}

INLINE u64 hash_bytes(const u8 *b, u32 n) {
    u64 h = 0xcbf29ce484222325ull ^ n;
    for (u32 i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3ull;
    return h ^ (h >> 29);
}

#endif
