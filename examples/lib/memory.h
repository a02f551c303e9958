/* Memory without a C library: bytes, a heap, and where the results of calls to the host land.
 *
 * The canonical ABI hands a result of unknown size (a list, a string) to the guest by calling `cabi_realloc`. Here a
 * program says before such a call where the result is to go: `land_in(place, room)`. So bytes that are read from a
 * socket arrive in the connection's own buffer, without a copy and without an allocation. Where nothing was said, the
 * result goes to new memory that is never freed; only start-up code does that (arguments, environment, preopens).
 */
#ifndef LOWCLOUD_MEMORY_H
#define LOWCLOUD_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t length);
void *memmove(void *to, const void *from, size_t length);
void *memset(void *to, int byte, size_t length);
int memcmp(const void *left, const void *right, size_t length);
size_t strlen(const char *text);

/* The lists that the next call to the host returns are put here, one after the other; a result that does not fit is a
 * fault of the host and traps. `land_anywhere` ends it. */
void land_in(void *place, size_t room);
void land_anywhere(void);

/* New memory that is never freed, 16-byte aligned; NULL where the memory limit forbids it. */
void *take(size_t length);

/* Memory that can be given back: `heap_free` takes the length that `heap_take` was given. NULL as above. */
void *heap_take(size_t length);
void heap_free(void *place, size_t length);

#endif
