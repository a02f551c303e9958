#include "maps.h"

typedef struct {
    const u8 *b;
    u32 p, end;
} cursor;

static u64 number(cursor *c) {
    u64 v;
    u32 n = read_uleb(c->b, c->p, c->end, &v);
    if (n == 0) fail(E_MODULE);
    c->p += n;
    return v;
}

static u32 count(cursor *c) {
    u64 v = number(c);
    if (v > c->end - c->p) fail(E_MODULE); /* every counted thing takes at least one byte */
    return (u32)v;
}

static u8 byte(cursor *c) {
    if (c->p >= c->end) fail(E_MODULE);
    return c->b[c->p++];
}

static void skip(cursor *c, u32 n) {
    if (n > c->end - c->p) fail(E_MODULE);
    c->p += n;
}

static void value_type(cursor *c) {
    u8 x = byte(c);
    if (x == 0x63 || x == 0x64) number(c);
}

static void storage_types(cursor *c, u32 n) {
    for (u32 i = 0; i < n; i++) {
        value_type(c);
        byte(c);
    }
}

static void composite_type(cursor *c, u8 form) {
    switch (form) {
    case 0x60:
        for (u32 side = 0; side < 2; side++) {
            u32 n = count(c);
            for (u32 i = 0; i < n; i++) value_type(c);
        }
        return;
    case 0x5f: storage_types(c, count(c)); return;
    case 0x5e: storage_types(c, 1); return;
    default: fail(E_MODULE);
    }
}

static void sub_type(cursor *c, u8 form) {
    if (form == 0x50 || form == 0x4f) {
        u32 n = count(c);
        for (u32 i = 0; i < n; i++) number(c);
        form = byte(c);
    }
    composite_type(c, form);
}

static void parse_types(module *m, cursor c) {
    u32 n = count(&c);
    for (u32 i = 0; i < n; i++) {
        u32 start = c.p;
        u8 form = byte(&c);
        u32 members = 1;
        if (form == 0x4e) {
            members = count(&c);
            for (u32 k = 0; k < members; k++) sub_type(&c, byte(&c));
        } else {
            sub_type(&c, form);
        }
        u64 h = hash_bytes(c.b + start, c.p - start);
        for (u32 k = 0; k < members; k++) PUSH(m->type_hashes, mix(h + k));
    }
}

static void limits(cursor *c) {
    u8 flags = byte(c);
    number(c);
    if (flags & 1) number(c);
    if (flags & 8) number(c);
}

static void parse_imports(module *m, cursor c) {
    u32 n = count(&c);
    for (u32 i = 0; i < n; i++) {
        u32 start = c.p;
        for (u32 k = 0; k < 2; k++) skip(&c, count(&c));
        u64 name = hash_bytes(c.b + start, c.p - start);
        switch (byte(&c)) {
        case 0:
            number(&c);
            m->imports++;
            PUSH(m->import_hashes, name);
            break;
        case 1:
            value_type(&c);
            limits(&c);
            break;
        case 2: limits(&c); break;
        case 3:
            value_type(&c);
            byte(&c);
            break;
        case 4:
            byte(&c);
            number(&c);
            break;
        default: fail(E_MODULE);
        }
    }
}

static void parse_function_types(module *m, cursor c) {
    u32 n = count(&c);
    for (u32 i = 0; i < n; i++) PUSH(m->function_types, (u32)number(&c));
    if (c.p != c.end) fail(E_MODULE);
}

/* Only the form that linkers emit: one active segment of table 0 with an i32.const offset. */
static int parse_elements(module *m, cursor c) {
    token t;
    if (count(&c) != 1 || byte(&c) != 0) return 0;
    if (!read_instruction(c.b, c.p, c.end, 0, 0, &t) || TOKEN_CLASS(t.op) != C_I32 || t.v < 0 || t.v > 1 << 20) return 0;
    c.p += t.len;
    if (byte(&c) != 0x0b) return 0;
    m->element_base = (u32)t.v;
    m->elements_head_end = c.p;
    u32 n = count(&c);
    for (u32 i = 0; i < n; i++) {
        u64 v;
        u32 len = read_uleb(c.b, c.p, c.end, &v);
        if (len == 0 || v > 0xffffff) return 0;
        if (len != uleb_bytes(v)) {
            if (len != 5) return 0;
            m->elements_padded++;
        }
        PUSH(m->elements, (u32)v);
        c.p += len;
    }
    if (m->elements_padded && m->elements_padded != n) return 0;
    return c.p == c.end;
}

static void parse_bodies(module *m, cursor c) {
    u32 n = count(&c), padded = 0;
    RESERVE(m->bodies, n);
    for (u32 i = 0; i < n; i++) {
        u64 size = 0;
        u32 len = read_uleb(c.b, c.p, c.end, &size);
        if (len == 0 || size > c.end - c.p - len) fail(E_MODULE);
        if (len != uleb_bytes(size)) {
            if (len != 5) fail(E_MODULE);
            padded++;
        } else if (len == 5) {
            padded++;
        }
        c.p += len;
        PUSH(m->bodies, ((range){c.p, c.p + (u32)size}));
        c.p += (u32)size;
    }
    if ((padded && padded != n) || c.p != c.end) fail(E_MODULE);
    m->bodies_padded = padded != 0;
}

static int parse_segment(module *m, cursor *c, u32 *padded_addresses, u32 *padded_lengths) {
    token t;
    segment s = {.addr = -1, .pay = m->pay.n};
    u64 size = 0;
    s.flag = byte(c);
    if (s.flag > 1) return 0;
    if (s.flag == 0) {
        if (!read_instruction(c->b, c->p, c->end, 0, 0, &t) || TOKEN_CLASS(t.op) != C_I32) return 0;
        *padded_addresses += t.operand_len == 5;
        c->p += t.len;
        s.addr = (u32)t.v;
        if (byte(c) != 0x0b) return 0;
    }
    u32 len = read_uleb(c->b, c->p, c->end, &size);
    if (len == 0 || size > c->end - c->p - len) return 0;
    if (len != uleb_bytes(size) && len != 5) return 0;
    *padded_lengths += len == 5;
    c->p += len;
    s.len = (u32)size;
    put(&m->pay, c->b + c->p, s.len);
    c->p += s.len;
    PUSH(m->segs, s);
    return 1;
}

static int parse_data(module *m, cursor c) {
    u32 n = count(&c), padded_addresses = 0, padded_lengths = 0;
    RESERVE(m->pay, c.end - c.p + 16);
    RESERVE(m->segs, n);
    for (u32 i = 0; i < n; i++)
        if (!parse_segment(m, &c, &padded_addresses, &padded_lengths)) return 0;
    /* Mixed padding is not reproduced; the encoder's own check then refuses the result. */
    m->segment_padding = (padded_addresses ? SEGMENT_ADDRESS_PADDED : 0) | (padded_lengths ? SEGMENT_LENGTH_PADDED : 0);
    return c.p == c.end;
}

static int parse_function_names(module *m, cursor c) {
    m->names_range.start = c.p;
    u32 n = count(&c);
    for (u32 i = 0; i < n; i++) {
        u64 index = 0, size = 0;
        u32 a = read_uleb(c.b, c.p, c.end, &index);
        if (a == 0 || index != i || a != uleb_bytes(index)) return 0;
        u32 l = read_uleb(c.b, c.p + a, c.end, &size);
        if (l == 0 || l != uleb_bytes(size) || size > c.end - c.p - a - l) return 0;
        c.p += a + l;
        PUSH(m->names, ((range){c.p, c.p + (u32)size}));
        c.p += (u32)size;
    }
    m->names_range.end = c.p;
    return c.p == c.end;
}

static void parse_custom(module *m, cursor c, u32 index) {
    u32 n = count(&c);
    if (n != 4 || word_at(c.b + c.p) != 0x656d616e) return; /* "name" */
    c.p += 4;
    while (c.p < c.end && !m->names_ok) {
        u8 id = byte(&c);
        u32 size = count(&c);
        if (id == 1) {
            m->names_section = index;
            m->names_ok = parse_function_names(m, (cursor){c.b, c.p, c.p + size});
            return;
        }
        c.p += size;
    }
}

void set_address_range(module *m) {
    m->low = NO_ADDRESS;
    m->data_end = 0;
    for (u32 i = 0; i < m->segs.n; i++) {
        segment *s = &m->segs.at[i];
        if (s->addr < 0) continue;
        if (s->addr < m->low) m->low = s->addr;
        if (s->addr + s->len > m->data_end) m->data_end = s->addr + s->len;
    }
}

int is_go(const u8 *b, u32 n) {
    /* Go imports its runtime from the module "gojs". The import section is near the start. */
    for (u32 i = 0; i + 4 <= n && i < 200000; i++)
        if (word_at(b + i) == 0x736a6f67) return 1;
    return 0;
}

void parse_section(module *m, u8 id, const u8 *b, u32 start, u32 end, u32 index) {
    cursor c = {b, start, end};
    switch (id) {
    case SECTION_CUSTOM: parse_custom(m, c, index); break;
    case SECTION_TYPE: parse_types(m, c); break;
    case SECTION_IMPORT: parse_imports(m, c); break;
    case SECTION_FUNCTION: parse_function_types(m, c); break;
    case SECTION_ELEMENT: m->elements_ok = parse_elements(m, c); break;
    case SECTION_CODE: parse_bodies(m, c); break;
    case SECTION_DATA: m->data_ok = parse_data(m, c); break;
    default: break;
    }
}

static int starts_with(const u8 *b, u32 p, u32 n, u8 kind) {
    return n - p >= 8 && word_at(b + p) == 0x6d736100 && b[p + 4] == (kind ? 0x0d : 1) && b[p + 5] == 0 &&
           b[p + 6] == kind && b[p + 7] == 0;
}

void parse_module(module *m, const u8 *b, u32 n) {
    u32 seen = 0;
    if (!starts_with(b, 0, n, 0)) fail(E_MODULE);
    m->b = b;
    m->n = n;
    cursor c = {b, 8, n};
    while (c.p < n) {
        section s = {.head = c.p};
        u64 size = 0;
        s.id = byte(&c);
        u32 len = read_uleb(b, c.p, n, &size);
        if (len == 0 || size > n - c.p - len) fail(E_MODULE);
        if (len != uleb_bytes(size) && len != 5) fail(E_MODULE);
        s.padded = len == 5;
        s.start = c.p + len;
        s.end = s.start + (u32)size;
        c.p = s.end;
        if (s.id > 13 || (s.id && (seen >> s.id & 1))) fail(E_MODULE);
        seen |= 1u << s.id;
        PUSH(m->secs, s);
        parse_section(m, s.id, b, s.start, s.end, m->secs.n - 1);
    }
    if (m->function_types.n != m->bodies.n) fail(E_MODULE);
    set_address_range(m);
}

int read_body(const module *m, range body, tokens *out) {
    u32 p = body.start;
    token t;
    out->n = 0;
    if (!read_local_groups(m->b, p, body.end, &t)) return 0;
    PUSH(*out, t);
    p += t.len;
    for (i64 groups = t.v; groups > 0; groups--) {
        if (!read_local_group(m->b, p, body.end, &t)) return 0;
        PUSH(*out, t);
        p += t.len;
    }
    while (p < body.end) {
        if (!read_instruction(m->b, p, body.end, m->go, 1, &t)) return 0;
        if (m->go && TOKEN_CLASS(t.op) == C_I64 && is_wide_mark(t.v)) return 0;
        PUSH(*out, t);
        p += t.len;
    }
    return p == body.end;
}

/* A component is a row of sections; 1 holds a core module, 4 a component. Containers are followed to a bounded depth. */
static void find_in_component(const u8 *b, u32 p, u32 end, u32 depth, ranges *out) {
    enum { DEEPEST = 8 };
    p += 8;
    while (p < end) {
        u8 id = b[p++];
        u64 size = 0;
        u32 len = read_uleb(b, p, end, &size);
        if (len == 0 || size > end - p - len) return;
        p += len;
        u32 stop = p + (u32)size;
        if (id == 1 && starts_with(b, p, stop, 0)) PUSH(*out, ((range){p, stop}));
        if (id == 4 && depth < DEEPEST && starts_with(b, p, stop, 1)) find_in_component(b, p, stop, depth + 1, out);
        p = stop;
    }
}

void find_modules(const u8 *b, u32 n, ranges *out) {
    if (n < 8) return;
    if (starts_with(b, 0, n, 0)) PUSH(*out, ((range){0, n}));
    else if (starts_with(b, 0, n, 1)) find_in_component(b, 0, n, 0, out);
}
