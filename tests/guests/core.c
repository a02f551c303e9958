/* As probe.c, for WASI preview 1: a core module that does what its first argument names. Exit codes are exact here. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern char **environ;

static int read_file(const char *path) {
    char text[4096];
    size_t length;
    FILE *file = fopen(path, "r");
    if (!file) return printf("denied %s\n", strerror(errno)), 1;
    while ((length = fread(text, 1, sizeof text, file))) fwrite(text, 1, length, stdout);
    return fclose(file);
}

static int write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    if (!file) return printf("denied %s\n", strerror(errno)), 1;
    if (fputs(text, file) < 0 || fclose(file)) return printf("failed %s\n", strerror(errno)), 1;
    puts("ok");
    return 0;
}

static int list_directory(const char *path) {
    struct dirent *entry;
    DIR *directory = opendir(path);
    if (!directory) return printf("denied %s\n", strerror(errno)), 1;
    while ((entry = readdir(directory))) puts(entry->d_name);
    return closedir(directory);
}

static int sleep_ms(long ms) {
    struct timespec duration = {ms / 1000, ms % 1000 * 1000000};
    puts("sleeping");
    fflush(stdout);
    return nanosleep(&duration, NULL);
}

static int print_lines(FILE *to, int count) {
    for (int i = 0; i < count; i++) fprintf(to, "line %d\n", i);
    return 0;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "", *first = argc > 2 ? argv[2] : "", *second = argc > 3 ? argv[3] : "";
    if (!strcmp(mode, "exit")) return atoi(first);
    if (!strcmp(mode, "trap")) __builtin_trap();
    if (!strcmp(mode, "sleep")) return sleep_ms(atol(first));
    if (!strcmp(mode, "print")) return print_lines(stdout, atoi(first));
    if (!strcmp(mode, "stderr")) return print_lines(stderr, atoi(first));
    if (!strcmp(mode, "read")) return read_file(first);
    if (!strcmp(mode, "write")) return write_file(first, second);
    if (!strcmp(mode, "list")) return list_directory(first);
    if (!strcmp(mode, "args")) {
        for (int i = 0; i < argc; i++) puts(argv[i]);
        return 0;
    }
    if (!strcmp(mode, "env")) {
        for (char **each = environ; *each; each++) puts(*each);
        return 0;
    }
    fprintf(stderr, "unknown mode: %s\n", mode);
    return 2;
}
