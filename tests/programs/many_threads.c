/* many_threads PROCESSES THREADS: children whose first threads call every function once, all of them before the other
 * threads of any call them ten times each; prints how often each function was called. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS = 10, MOST_THREADS = 64 };

static pthread_barrier_t *all;
static pthread_barrier_t own;

static void require(int holds, const char *what) {
    if (!holds) {
        perror(what);
        exit(2);
    }
}

static void each(void) {
    void *volatile p = malloc(24);
    void *volatile q = calloc(3, 8);
    void *r;
    p = realloc(p, 100);
    free(p);
    free(q);
    free(p = aligned_alloc(64, 128));
    free(p = memalign(64, 128));
    free(p = valloc(64));
    require(!posix_memalign(&r, 64, 64), "posix_memalign");
    free(r);
}

static void *run(void *argument) {
    pthread_barrier_wait(&own);
    for (int i = 0; i < ROUNDS; i++)
        each();
    return argument;
}

static void child(int threads) {
    pthread_t started[MOST_THREADS];
    each();
    pthread_barrier_wait(all);
    require(!pthread_barrier_init(&own, NULL, (unsigned)threads), "a barrier");
    for (int i = 0; i < threads; i++)
        require(!pthread_create(&started[i], NULL, run, NULL), "a thread");
    for (int i = 0; i < threads; i++)
        pthread_join(started[i], NULL);
    /* None ends, and gives back what counts it, before the last has counted. */
    pthread_barrier_wait(all);
    _exit(0);
}

int main(int argc, char **argv) {
    int processes = argc > 1 ? atoi(argv[1]) : 1, threads = argc > 2 ? atoi(argv[2]) : 1, status;
    require(threads > 0 && threads <= MOST_THREADS, "so many threads");
    all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    require(all != MAP_FAILED, "shared memory");
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    require(!pthread_barrier_init(all, &shared, (unsigned)processes), "a barrier");
    for (int i = 0; i < processes; i++) {
        pid_t pid = fork();
        require(pid >= 0, "fork");
        if (pid == 0)
            child(threads);
    }
    while (wait(&status) > 0)
        require(status == 0, "a child");
    printf("%d\n", processes * (1 + threads * ROUNDS));
    return 0;
}
