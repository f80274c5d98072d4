/* Pairs of malloc and free on some threads: CPU and wall nanoseconds of one pair, the median of the rounds.
   With a fourth argument a round at each line of the input, and the CPU nanoseconds of a pair in it. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 9, THREADS = 8 };

static long pairs;
static size_t size;
static int threads, touch;
static pthread_barrier_t start;
static double cpu[THREADS][ROUNDS], wall[THREADS][ROUNDS];

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void *run(void *argument) {
    long id = (long)argument;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&start);
        double cpu_before = now(CLOCK_THREAD_CPUTIME_ID), before = now(CLOCK_MONOTONIC);
        for (long i = 0; i < pairs; i++) {
            char *volatile p = malloc(size);
            if (touch)
                memset(p, 1, 4096);
            free(p);
        }
        wall[id][round] = (now(CLOCK_MONOTONIC) - before) / (double)pairs;
        cpu[id][round] = (now(CLOCK_THREAD_CPUTIME_ID) - cpu_before) / (double)pairs;
    }
    return 0;
}

static void run_at_each_line(void) {
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        double before = now(CLOCK_THREAD_CPUTIME_ID);
        for (long i = 0; i < pairs; i++) {
            char *volatile p = malloc(size);
            free(p);
        }
        printf("%.2f\n", (now(CLOCK_THREAD_CPUTIME_ID) - before) / (double)pairs);
        fflush(stdout);
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    threads = atoi(argv[1]);
    pairs = atol(argv[2]) / ROUNDS;
    size = strtoul(argv[3], 0, 0);
    if (threads < 1 || threads > THREADS || pairs < 1)
        return 2;
    if (size >= 131072) {
        /* Every chunk of that size is mapped: freeing one would raise the threshold. */
        mallopt(M_MMAP_THRESHOLD, 131072);
        touch = 1;
    }
    if (argc > 4) {
        run_at_each_line();
        return 0;
    }
    pthread_barrier_init(&start, 0, (unsigned)threads);
    pthread_t others[THREADS];
    for (long i = 1; i < threads; i++)
        if (pthread_create(&others[i], 0, run, (void *)i))
            return 1;
    run(0);
    for (long i = 1; i < threads; i++)
        pthread_join(others[i], 0);
    double cpu_sum = 0, wall_sum = 0;
    for (int i = 0; i < threads; i++) {
        qsort(cpu[i], ROUNDS, sizeof(double), ascending);
        qsort(wall[i], ROUNDS, sizeof(double), ascending);
        cpu_sum += cpu[i][ROUNDS / 2];
        wall_sum += wall[i][ROUNDS / 2];
    }
    printf("%.1f %.1f\n", cpu_sum / threads, wall_sum / threads);
    return 0;
}
