#include "base.h"

#ifdef __wasm__ /* elsewhere (tests/fuzz) a harness that watches every byte brings its own `fail` and `allocate` */

extern u8 __heap_base;
static u64 heap_top;
static u64 heap_end;
static u32 error;

__attribute__((export_name("kernel_error"))) u32 kernel_error(void) { return error; }

_Noreturn void fail(u32 reason) {
    error = reason;
    __builtin_trap();
}

enum { PAGE = 65536, GROW_PAGES = 16 };

void *allocate(u64 n) {
    if (heap_top == 0) {
        heap_top = ((u64)(u32)&__heap_base + 15) & ~15ull;
        heap_end = (u64)__builtin_wasm_memory_size(0) * PAGE;
    }
    u64 start = heap_top;
    u64 end = (start + n + 15) & ~15ull;
    if (end > 0xffff0000ull) fail(E_MEMORY);
    if (end > heap_end) {
        u64 pages = (end - heap_end + PAGE - 1) / PAGE, many = pages < GROW_PAGES ? GROW_PAGES : pages;
        if (__builtin_wasm_memory_grow(0, (u32)many) != (u32)-1) pages = many;
        else if (__builtin_wasm_memory_grow(0, (u32)pages) == (u32)-1) fail(E_MEMORY);
        heap_end += pages * PAGE;
    }
    heap_top = end;
    return (void *)(u32)start;
}

#endif

__attribute__((export_name("kernel_allocate"))) u32 kernel_allocate(u32 n) { return (u32)allocate(n); }

/* memory.copy is a call out of compiled code; short copies are faster by hand. */
void copy_bytes(void *to, const void *from, u32 n) {
    u8 *t = to;
    const u8 *f = from;
    if (n > 64) {
        __builtin_memcpy(t, f, n);
        return;
    }
    while (n >= 8) {
        u64 v;
        __builtin_memcpy(&v, f, 8);
        __builtin_memcpy(t, &v, 8);
        t += 8;
        f += 8;
        n -= 8;
    }
    for (u32 i = 0; i < n; i++) t[i] = f[i];
}

void grow(void **at, u32 *room, u32 n, u32 more, u32 element_bytes) {
    u64 want = (u64)n + more;
    u64 next = (u64)*room * 2;
    if (next < want) next = want;
    if (next < 16) next = 16;
    if (next > 0xffffffffull) fail(E_MEMORY);
    void *fresh = allocate(next * element_bytes);
    if (n) __builtin_memcpy(fresh, *at, n * element_bytes);
    *at = fresh;
    *room = (u32)next;
}

void put(bytes *out, const u8 *from, u32 n) {
    RESERVE(*out, n);
    copy_bytes(out->at + out->n, from, n);
    out->n += n;
}

/* Radix sort from the lowest byte: stable, so ties keep the order of their values, and no input is slow. Bytes that all
   keys share cost one count. */
void sort_pairs(pair *p, u32 n) {
    static u32 at[256];
    u32 ascending = 1;
    while (ascending < n && p[ascending - 1].key <= p[ascending].key) ascending++;
    if (ascending >= n) return;
    pair *from = p, *to = allocate((u64)n * sizeof(pair));
    for (u32 shift = 0; shift < 64; shift += 8) {
        __builtin_memset(at, 0, sizeof at);
        for (u32 i = 0; i < n; i++) at[from[i].key >> shift & 255]++;
        if (n && at[from[0].key >> shift & 255] == n) continue;
        for (u32 k = 0, sum = 0; k < 256; k++) {
            u32 count = at[k];
            at[k] = sum;
            sum += count;
        }
        for (u32 i = 0; i < n; i++) to[at[from[i].key >> shift & 255]++] = from[i];
        pair *other = from;
        from = to;
        to = other;
    }
    if (from != p && n) __builtin_memcpy(p, from, n * sizeof(pair));
}
