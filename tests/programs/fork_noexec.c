/* fork_noexec [N]: parent and N children allocate at the same time; every process prints its own account. */
#include "truth.h"
#include <sys/wait.h>

static void allocate(unsigned long seed, unsigned times) {
    unsigned long state = seed;
    for (unsigned i = 0; i < times; i++) {
        void *p = t_malloc(t_next(&state) % 5000);
        p = t_realloc(p, t_next(&state) % 5000 + 1);
        t_free(p);
        t_free(t_calloc(3, t_next(&state) % 100));
    }
}

/* One byte in a pipe is the turn to print: long lines of two processes would mix otherwise. */
static void print_in_turn(const int turn[2]) {
    char byte;
    t_require(read(turn[0], &byte, 1) == 1, "turn");
    t_print("fork_noexec");
    t_write(turn[1], &byte, 1);
}

int main(int argc, char **argv) {
    unsigned long children = argc > 1 ? t_parse(argv[1], 3) : 3;
    int turn[2];
    t_require(!pipe(turn), "pipe");
    t_write(turn[1], "t", 1);
    void *inherited = t_malloc(10000);
    allocate(99, 500);
    for (unsigned long i = 0; i < children; i++) {
        pid_t pid = fork();
        t_require(pid >= 0, "fork");
        if (pid == 0) {
            t_reset();
            allocate(i + 1, 300 + 100 * (unsigned)i);
            /* The parent's chunk, freed in the child's copy of the heap, is the child's call. */
            t_free(inherited);
            print_in_turn(turn);
            _exit(0);
        }
    }
    allocate(7, 1000);
    t_free(inherited);
    for (unsigned long i = 0; i < children; i++) {
        int status;
        t_require(wait(&status) > 0 && status == 0, "child");
    }
    print_in_turn(turn);
    return 0;
}
