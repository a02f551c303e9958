/* Counts what the kernel executes, for tests/fuzz/outside.py: linked into a kernel that is compiled with a call at every
   edge (`-fsanitize-coverage=trace-pc-guard`). An edge is known by the address of its guard. */
#include "base.h"

enum { EDGES = 1 << 14 };
static u8 hits[EDGES];

__attribute__((export_name("coverage_at"))) u8 *coverage_at(void) { return hits; }
__attribute__((export_name("coverage_bytes"))) u32 coverage_bytes(void) { return EDGES; }

void __sanitizer_cov_trace_pc_guard_init(u32 *from, u32 *to) { (void)from, (void)to; }

void __sanitizer_cov_trace_pc_guard(const u32 *guard) {
    u8 *hit = &hits[(u32)guard / sizeof(*guard) % EDGES];
    if (*hit < 255) ++*hit;
}
