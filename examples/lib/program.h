/* What every example is: a program with arguments, an environment and two outputs, that ends well or badly.
 *
 * A program defines `bool run(void)`; the library exports it as wasi:cli/run. `false` is exit status 1: WASI 0.2 knows
 * success and failure, nothing between.
 */
#ifndef LOWCLOUD_PROGRAM_H
#define LOWCLOUD_PROGRAM_H

#include "text.h"
#include "wasi.h"

bool run(void);

/* Arguments, the program's own name first. Past the last one: an empty slice whose `at` is NULL. */
struct slice argument(size_t index);
size_t argument_count(void);

/* The value after `--name` among the arguments, or `otherwise`. */
struct slice option(const char *name, struct slice otherwise);
/* As above for a number of at most `most`; anything else ends the program with a message. */
uint64_t option_number(const char *name, uint64_t otherwise, uint64_t most);

/* The value of an environment variable; `at` is NULL where it is not set. */
struct slice environment(const char *name);
/* The `index`th variable, false past the last one. */
bool environment_at(size_t index, struct slice *name, struct slice *value);

/* Print a whole line (or part of one) at once and wait until it is out. */
void print(struct slice text);
void print_error(struct slice text);

/* Print "<program>: <what><why>" to standard error and end the program badly. */
_Noreturn void fail(const char *what, struct slice why);

#endif
