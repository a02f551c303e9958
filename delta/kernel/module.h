/* What the codec knows of a core module: its sections, functions, types, imports, elements, data and names. */
#ifndef LOWCLOUD_MODULE_H
#define LOWCLOUD_MODULE_H

#include "base.h"
#include "token.h"

typedef struct {
    u8 id;
    u8 padded; /* its size is written in 5 bytes */
    u32 head, start, end;
} section;

typedef struct {
    u32 flag; /* 0: active in memory 0, 1: passive */
    i64 addr; /* -1 where unknown */
    u32 pay;  /* offset of its bytes in the payloads of all segments, joined */
    u32 len;
} segment;

typedef struct {
    u32 start, end;
} range;

typedef VEC(segment) segments;
typedef VEC(range) ranges;
typedef VEC(section) sections;

enum { SEGMENT_ADDRESS_PADDED = 1, SEGMENT_LENGTH_PADDED = 2 };

typedef struct {
    const u8 *b;
    u32 n;
    int go;        /* made by the Go toolchain: call indices are signed, program counters encode functions */
    sections secs;
    u32 imports;   /* imported functions */
    u64s import_hashes, type_hashes;
    u32s function_types;
    ranges bodies; /* without their size prefix */
    int bodies_padded;
    int elements_ok; /* the element section is one active segment of function indices */
    u32 elements_head_end, element_base, elements_padded;
    u32s elements;
    int data_ok;
    u32 segment_padding;
    segments segs;
    bytes pay;
    i64 low;       /* lowest data address, or a huge one */
    i64 data_end;
    int names_ok;
    range names_range; /* from the count of the function name map to its end */
    u32 names_section;
    ranges names;
} module;

#define NO_ADDRESS (1ll << 40)

/* Parses b[0..n). Fails (traps) where the structure is not understood. */
void parse_module(module *m, const u8 *b, u32 n);

/* Parses the one section of b[start..end) into m: what the decoder knows of the target before it has rebuilt it. */
void parse_section(module *m, u8 id, const u8 *b, u32 start, u32 end, u32 index);

/* Sets low and data_end from the segments. */
void set_address_range(module *m);

enum { SECTION_CUSTOM, SECTION_TYPE, SECTION_IMPORT, SECTION_FUNCTION, SECTION_ELEMENT = 9, SECTION_CODE, SECTION_DATA };

/* The core modules in a file: itself, or those in a component, also in components within it; in order. */
void find_modules(const u8 *b, u32 n, ranges *out);

int is_go(const u8 *b, u32 n);

typedef VEC(token) tokens;
/* The tokens of a body. Returns 0 where an instruction is not understood. */
int read_body(const module *m, range body, tokens *out);

#endif
