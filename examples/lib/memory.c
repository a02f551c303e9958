#include "memory.h"

#define PAGE ((size_t)65536)
#define ALIGNMENT ((size_t)16)

/* --- bytes: with the bulk-memory feature each of the first three is one instruction --- */

void *memcpy(void *restrict to, const void *restrict from, size_t length) {
    return __builtin_memcpy(to, from, length);
}

void *memmove(void *to, const void *from, size_t length) {
    return __builtin_memmove(to, from, length);
}

void *memset(void *to, int byte, size_t length) {
    return __builtin_memset(to, byte, length);
}

int memcmp(const void *left, const void *right, size_t length) {
    const uint8_t *a = left, *b = right;
    for (size_t i = 0; i < length; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *text) {
    size_t length = 0;
    while (text[length]) length++;
    return length;
}

/* --- memory that grows --- */

extern uint8_t __heap_base;
static uintptr_t next_free, end_of_memory;

void *take(size_t length) {
    if (!next_free) {
        next_free = ((uintptr_t)&__heap_base + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
        end_of_memory = __builtin_wasm_memory_size(0) * PAGE;
    }
    if (length > SIZE_MAX / 2) return NULL;
    length = (length + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
    if (length > end_of_memory - next_free) {
        size_t pages = (length - (end_of_memory - next_free) + PAGE - 1) / PAGE;
        if (__builtin_wasm_memory_grow(0, pages) == SIZE_MAX) return NULL;
        end_of_memory += pages * PAGE;
    }
    void *place = (void *)next_free;
    next_free += length;
    return place;
}

/* --- heap: a list of free blocks for each power of two. Simple, and no block is ever moved between lists. --- */

struct block {
    struct block *next;
};
static struct block *free_blocks[32];

static unsigned class_of(size_t length) {
    return length <= ALIGNMENT ? 4 : 32 - (unsigned)__builtin_clz((unsigned)(length - 1));
}

void *heap_take(size_t length) {
    if (length > (size_t)1 << 30) return NULL;
    unsigned class = class_of(length);
    struct block *block = free_blocks[class];
    if (!block) return take((size_t)1 << class);
    free_blocks[class] = block->next;
    return block;
}

void heap_free(void *place, size_t length) {
    if (!place) return;
    struct block *block = place;
    unsigned class = class_of(length);
    block->next = free_blocks[class];
    free_blocks[class] = block;
}

/* --- where results land --- */

static uint8_t *landing;
static size_t landing_room;

void land_in(void *place, size_t room) {
    landing = place;
    landing_room = room;
}

void land_anywhere(void) {
    landing = NULL;
}

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size;
    if (old) __builtin_trap(); /* only hosts that transcode strings ever grow a result */
    if (!landing) {
        void *place = take(size);
        if (!place) __builtin_trap();
        return place;
    }
    size_t padding = -(uintptr_t)landing & (align - 1);
    if (padding > landing_room || size > landing_room - padding) __builtin_trap();
    uint8_t *place = landing + padding;
    landing = place + size;
    landing_room -= padding + size;
    return place;
}
