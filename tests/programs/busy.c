/*
 * Works only when told: for each byte on standard input it makes 1000 rounds of malloc, calloc and two frees and
 * answers one byte; for the byte `c` it starts a child that executes another program, and waits for its end. Whoever holds the pipes knows exactly how many calls fell between two moments. When the
 * input closes it prints its account and ends.
 */
#include "truth.h"
#include <sys/wait.h>

#define ROUNDS 1000

int main(void) {
    char byte;
    for (;;) {
        ssize_t got = read(0, &byte, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        if (byte == 'c') {
            pid_t child = fork();
            if (child == 0) {
                execl("/bin/true", "true", (char *)NULL);
                _exit(127);
            }
            int status;
            while (waitpid(child, &status, 0) < 0 && errno == EINTR)
                ;
            t_write(1, ".", 1);
            continue;
        }
        for (size_t i = 0; i < ROUNDS; i++) {
            void *p = t_malloc(i * 3);
            t_free(t_calloc(2, i));
            t_free(p);
        }
        t_write(1, ".", 1);
    }
    t_fact("rounds", ROUNDS);
    t_print("busy");
    return 0;
}
