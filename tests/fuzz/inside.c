/* The kernel under libFuzzer with the address and undefined-behaviour sanitizers: what the sandbox would hide is seen
   here. It is compiled natively from the same sources; only its allocator is this file's, which sets every allocation
   apart from the next and watches the gap, and ends a failing call by a jump instead of a trap.

   An input is one call: what to do, the number of a base, the size of the target, then the bytes:

       0  1  2  3  4  5 ...
       op base  size  bytes       op 0: decode, 1: cover-decode, 2: encode towards the bytes, 3: encode away from them,
                                  4: cover-encode towards them, 5: unpack them as text, 6: pack them as text (size: its
                                  effort); what 4 and 6 made is read back. size: little-endian, 24 bits;
                                  base 255: the bytes begin with one of their own, after its size in 16 bits.

   Streams are mutated one by one, so that the row of their sizes stays right. Called by tests/fuzz/inside.py; the bases
   are the files 0, 1, 2, ... in the directory $FUZZ_BASES. */
#include <sanitizer/asan_interface.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "streams.h"

u32 kernel_decode(const u8 *base, u32 base_bytes, const u8 *streams, u32 streams_bytes, u32 target_bytes);
u32 kernel_cover_decode(const u8 *base, u32 base_bytes, const u8 *streams, u32 streams_bytes, u32 target_bytes);
u32 kernel_encode(const u8 *base, u32 base_bytes, const u8 *target, u32 target_bytes);
u32 kernel_cover_encode(const u8 *base, u32 base_bytes, const u8 *target, u32 target_bytes);
u32 kernel_unpack_text(const u8 *base, u32 base_bytes, const u8 *numbers, u32 numbers_bytes, const u8 *packed,
                       u32 packed_bytes, u32 text_bytes);
u32 kernel_pack_text(const u8 *base, u32 base_bytes, const u8 *text, u32 text_bytes, u32 depth);
u32 kernel_streams_bytes(void);
u32 kernel_packed_bytes(void);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

enum { DECODE, COVER_DECODE, ENCODE_TOWARDS, ENCODE_AWAY, COVER_ENCODE, UNPACK_TEXT, PACK_TEXT, OPS };
enum { HEAD = 5, BASES = 64, COVER_STREAMS = 4, OWN_BASE = 255 };
enum { GAP = 32, AFTER_INPUT = 16, ALLOWANCE = 96 << 20, DECODE_FACTOR = 6, ENCODE_FACTOR = 24 };
/* Low, because the kernel returns addresses as 32-bit numbers. */
#define ARENA ((u8 *)0x10000000)
#define ARENA_BYTES (1ull << 30)

static u8 *top, *limit, *highest;
static jmp_buf failed;
static struct {
    u8 *at;
    u32 n;
} bases[BASES];
static u32 base_count;

_Noreturn void fail(u32 reason) { longjmp(failed, (int)reason); }

void *allocate(u64 n) {
    u8 *at = top;
    u64 with_gap = ((n + 15) & ~15ull) + GAP;
    if (n > ARENA_BYTES || with_gap > (u64)(limit - top)) fail(E_MEMORY);
    top += with_gap;
    if (top > highest) highest = top;
    __asan_unpoison_memory_region(at, n);
    return at;
}

/* Memory as a fresh sandbox has it: zero. */
static void open_arena(u64 bytes) {
    u64 used = (u64)(highest - ARENA);
    __asan_unpoison_memory_region(ARENA, used);
    if (used > 4 << 20) madvise(ARENA, used, MADV_DONTNEED);
    else memset(ARENA, 0, used);
    __asan_poison_memory_region(ARENA, used);
    top = highest = ARENA;
    limit = ARENA + (bytes < ARENA_BYTES ? bytes : ARENA_BYTES);
}

static u8 *put_in(const u8 *from, u32 n) {
    u8 *at = allocate(n + AFTER_INPUT);
    memcpy(at, from, n);
    return at;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    if (mmap(ARENA, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
             -1, 0) != ARENA)
        abort();
    top = highest = ARENA;
    __asan_poison_memory_region(ARENA, ARENA_BYTES);
    for (; base_count < BASES; base_count++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%u", getenv("FUZZ_BASES"), base_count);
        FILE *file = fopen(path, "rb");
        if (!file) break;
        fseek(file, 0, SEEK_END);
        bases[base_count].n = (u32)ftell(file);
        bases[base_count].at = malloc(bases[base_count].n + 1);
        rewind(file);
        if (fread(bases[base_count].at, 1, bases[base_count].n, file) != bases[base_count].n) abort();
        fclose(file);
    }
    if (!base_count) abort();
    return 0;
}

/* Where the bytes behind a base of the input's own begin. */
static size_t bytes_at(const uint8_t *data, size_t size) {
    if (size < HEAD + 2 || data[1] != OWN_BASE) return HEAD;
    size_t n = HEAD + 2 + (data[HEAD] | (size_t)data[HEAD + 1] << 8);
    return n < size ? n : size;
}

static void expect_same(u32 made, const u8 *wanted, u32 n) {
    if (n && memcmp((void *)(uintptr_t)made, wanted, n)) abort();
}

/* Encoders without exceptions: what they made must come back. A failure on the way is for the sandbox's bounds alone. */
static void read_back(u32 op, const u8 *b, u32 base_bytes, u32 made, const u8 *x, u32 n) {
    const u8 *from = (u8 *)(uintptr_t)made;
    if (op == COVER_ENCODE) expect_same(kernel_cover_decode(b, base_bytes, from, kernel_streams_bytes(), n), x, n);
    if (op == PACK_TEXT) expect_same(kernel_unpack_text(b, base_bytes, b, 0, from, kernel_packed_bytes(), n), x, n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < HEAD) return -1;
    u32 op = data[0] % OPS, target_bytes = data[2] | (u32)data[3] << 8 | (u32)data[4] << 16;
    size_t at = bytes_at(data, size);
    u32 n = (u32)(size - at), own = at > HEAD;
    const u8 *base = own ? data + HEAD + 2 : bases[data[1] % base_count].at;
    u32 base_bytes = own ? (u32)at - HEAD - 2 : bases[data[1] % base_count].n;
    int encodes = op >= ENCODE_TOWARDS && op != UNPACK_TEXT;
    open_arena((u64)(encodes ? ENCODE_FACTOR : DECODE_FACTOR) * (base_bytes + (encodes ? n : target_bytes)) + ALLOWANCE);
    if (setjmp(failed)) return 0;
    const u8 *b = put_in(base, base_bytes), *x = put_in(data + at, n);
    u32 made = 0, made_bytes = target_bytes;
    switch (op) {
    case DECODE: made = kernel_decode(b, base_bytes, x, n, target_bytes); break;
    case COVER_DECODE: made = kernel_cover_decode(b, base_bytes, x, n, target_bytes); break;
    case ENCODE_TOWARDS: made = kernel_encode(b, base_bytes, x, n); break;
    case ENCODE_AWAY: made = kernel_encode(x, n, b, base_bytes); break;
    case COVER_ENCODE: made = kernel_cover_encode(b, base_bytes, x, n); break;
    case UNPACK_TEXT: made = kernel_unpack_text(b, base_bytes, b, 0, x, n, target_bytes); break;
    case PACK_TEXT: made = kernel_pack_text(b, base_bytes, x, n, target_bytes & 255); break;
    }
    if (encodes) made_bytes = op == PACK_TEXT ? kernel_packed_bytes() : kernel_streams_bytes();
    read_back(op, b, base_bytes, made, x, n);
    if (made_bytes) __asan_region_is_poisoned((void *)(uintptr_t)made, made_bytes) ? abort() : (void)0;
    return 0;
}

/* Splits a row of streams leniently: sizes that do not fit are cut, what is left over belongs to the last. */
static void split_leniently(const u8 *b, u32 n, reader *s, u32 count) {
    reader all = {b, 0, n};
    u64 sizes[STREAMS];
    for (u32 i = 0; i < count; i++) {
        u32 used = read_uleb(b, all.p, all.end, &sizes[i]);
        if (!used) sizes[i] = 0;
        all.p += used;
    }
    for (u32 i = 0; i < count; i++) {
        u32 left = all.end - all.p, take = i + 1 == count || sizes[i] > left ? left : (u32)sizes[i];
        s[i] = (reader){b + all.p, 0, take};
        all.p += take;
    }
}

static size_t join(const reader *s, u32 count, uint8_t *to, size_t room) {
    size_t n = 0;
    for (u32 i = 0; i < count && n + 10 <= room; i++) n += write_uleb(to + n, s[i].end);
    for (u32 i = 0; i < count; i++) {
        size_t take = s[i].end < room - n ? s[i].end : room - n;
        memcpy(to + n, s[i].b, take);
        n += take;
    }
    return n;
}

/* One stream in isolation, or the input as it lies. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    static uint8_t old[1 << 20], fresh[1 << 20];
    size_t at = size < HEAD ? size : bytes_at(data, size);
    int decodes = size > HEAD && data[0] % OPS <= COVER_DECODE;
    if (!decodes || seed % 4 == 0 || max_size > sizeof old || size > max_size) return LLVMFuzzerMutate(data, size, max_size);
    u32 count = data[0] % OPS == DECODE ? STREAMS : COVER_STREAMS, pick = seed / 4 % count, n = (u32)(size - at);
    reader s[STREAMS];
    memcpy(old, data + at, n);
    split_leniently(old, n, s, count);
    memcpy(fresh, s[pick].b, s[pick].end);
    u32 room = (u32)(max_size - at) - (n - s[pick].end);
    room = room > 400 ? room - 400 : 1; /* for the sizes */
    if (s[pick].end > room) return LLVMFuzzerMutate(data, size, max_size);
    s[pick].end = (u32)LLVMFuzzerMutate(fresh, s[pick].end, room);
    s[pick].b = fresh;
    return at + join(s, count, data + at, max_size - at);
}
