/*
 * opens_late LIBRARY: answers `.`, waits for a byte, opens an allocator's library for itself alone, answers `.`, waits
 * for a byte, and calls the malloc of that library. Its own malloc is another.
 */
#define T_FOREIGN
#include "truth.h"
#include <dlfcn.h>

static void pause_for_a_byte(void) {
    char byte = '.';
    t_write(1, &byte, 1);
    t_require(read(0, &byte, 1) == 1, "no byte to go on");
}

int main(int argc, char **argv) {
    void *(*late_malloc)(size_t);
    void (*late_free)(void *);
    t_require(argc == 2, "a library");
    pause_for_a_byte();
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    t_require(library != NULL, "dlopen");
    *(void **)&late_malloc = dlsym(library, "malloc");
    *(void **)&late_free = dlsym(library, "free");
    t_require(late_malloc && late_free && late_malloc != malloc, "another malloc");
    pause_for_a_byte();
    for (size_t size = 0; size < 1000; size++)
        late_free(late_malloc(size));
    t_fact("late", 1000);
    t_print("opens_late");
    return 0;
}
