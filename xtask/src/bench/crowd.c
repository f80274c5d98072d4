/* Many processes that do nothing, or map and unmap a chunk once a second each; they end with this one's input. */
#define _GNU_SOURCE
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static void pause_for(long ns) {
    struct timespec t = {ns / 1000000000, ns % 1000000000};
    nanosleep(&t, NULL);
}

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 0;
    int busy = argc > 2 && strcmp(argv[2], "busy") == 0;
    /* Left alone the threshold rises with the first free, and no later chunk is mapped. */
    if (busy)
        mallopt(M_MMAP_THRESHOLD, 128 << 10);
    for (long i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid < 0) {
            perror("fork");
            return 1;
        }
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (!busy) {
                for (;;)
                    pause();
            }
            /* Not all in the same moment. */
            pause_for(i % 1000 * 1000000);
            for (;;) {
                volatile char *p = malloc(1 << 20);
                if (p)
                    p[0] = 1;
                free((void *)p);
                pause_for(1000000000);
            }
        }
    }
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF) {
    }
    return 0;
}
