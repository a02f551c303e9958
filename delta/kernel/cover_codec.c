/* The codec for data of any kind: stretches of the base with single bytes changed, and what lies between them. The
   changed bytes are written as differences, since a value that moved has moved by the same amount in many places. */
#include "cover.h"
#include "streams.h"

enum cover_stream { COVERS, GAPS, DIFFERENCES, BETWEEN, COVER_STREAMS };

static void encode_one(bytes *s, const u8 *o, const u8 *n, cover c, u64 *run) {
    for (u32 i = 0; i < c.len; i++) {
        if (n[c.n + i] == o[c.o + i]) {
            ++*run;
            continue;
        }
        put_number(&s[GAPS], *run);
        PUSH(s[DIFFERENCES], (u8)(n[c.n + i] - o[c.o + i]));
        *run = 0;
    }
}

/* Makes the streams; returns where they are. */
__attribute__((export_name("kernel_cover_encode"))) u32 kernel_cover_encode(const u8 *base, u32 base_bytes,
                                                                             const u8 *target, u32 target_bytes) {
    bytes s[COVER_STREAMS] = {0};
    bytes joined = {0};
    covers c = {0};
    u32 at = 0;
    i64 old_at = 0;
    u64 run = 0;
    find_covers(base, base_bytes, target, target_bytes, &c);
    put_number(&s[COVERS], c.n);
    for (u32 i = 0; i < c.n; i++) {
        cover x = c.at[i];
        put_number(&s[COVERS], x.n - at);
        put_number(&s[COVERS], x.len);
        put_number(&s[COVERS], zigzag((i64)x.o - old_at));
        put(&s[BETWEEN], target + at, x.n - at);
        encode_one(s, base, target, x, &run);
        at = x.n + x.len;
        old_at = (i64)x.o + x.len;
    }
    put(&s[BETWEEN], target + at, target_bytes - at);
    join_streams(s, COVER_STREAMS, BETWEEN, &joined);
    return (u32)joined.at;
}

static u64 next_run(reader *r) { return r->p < r->end ? take_number(r) : ~0ull; }

static void decode_one(reader *s, const u8 *from, u8 *to, u32 len, u64 *run) {
    u32 i = 0;
    while (*run < len - i) {
        u32 same = (u32)*run;
        copy_bytes(to + i, from + i, same);
        i += same;
        to[i] = (u8)(from[i] + *take_bytes(&s[DIFFERENCES], 1));
        i++;
        *run = next_run(&s[GAPS]);
    }
    copy_bytes(to + i, from + i, len - i);
    if (*run != ~0ull) *run -= len - i;
}

/* Rebuilds the target of `target_bytes` bytes; returns where it is. */
__attribute__((export_name("kernel_cover_decode"))) u32 kernel_cover_decode(const u8 *base, u32 base_bytes,
                                                                             const u8 *streams, u32 streams_bytes,
                                                                             u32 target_bytes) {
    reader s[COVER_STREAMS];
    split_streams(streams, streams_bytes, s, COVER_STREAMS);
    u8 *out = allocate((u64)target_bytes + 1);
    u64 run = next_run(&s[GAPS]);
    u32 at = 0;
    i64 old_at = 0;
    for (u64 n = take_number(&s[COVERS]); n > 0; n--) {
        u32 start = at + take_below(&s[COVERS], (u64)target_bytes - at + 1);
        u32 len = take_below(&s[COVERS], (u64)target_bytes - start + 1);
        i64 o = old_at + unzigzag(take_number(&s[COVERS]));
        if (o < 0 || o > base_bytes || len > base_bytes - o) fail(E_STREAM);
        copy_bytes(out + at, take_bytes(&s[BETWEEN], start - at), start - at);
        decode_one(s, base + o, out + start, len, &run);
        at = start + len;
        old_at = o + len;
    }
    copy_bytes(out + at, take_bytes(&s[BETWEEN], target_bytes - at), target_bytes - at);
    return (u32)out;
}
