/*
 * stacks_arenas [N] [STACK_MIB]: N threads alive at once, each on a stack of its own size, each allocating in
 * an arena of its own while the libc still grants one. Truth: one stack mapping for each thread, and the
 * heaps that chunks were really seen in.
 */
#include "truth.h"
#include <pthread.h>

#define MOST_THREADS 64
/* HEAP_MAX_SIZE of 64-bit glibc: heaps of other arenas start at multiples of it. */
#define HEAP_BYTES (64UL << 20)

static pthread_barrier_t all_started, all_done;
static unsigned long heaps[MOST_THREADS];

static void *work(void *argument) {
    unsigned long index = (unsigned long)(uintptr_t)argument;
    void *slots[100];
    pthread_barrier_wait(&all_started);
    for (int i = 0; i < 100; i++)
        slots[i] = t_malloc(2000);
    if (t_size_word(slots[0]) & T_NON_MAIN_ARENA)
        heaps[index] = (unsigned long)(uintptr_t)slots[0] & ~(HEAP_BYTES - 1);
    for (int i = 0; i < 100; i++)
        t_free(slots[i]);
    pthread_barrier_wait(&all_done);
    return NULL;
}

int main(int argc, char **argv) {
    unsigned long count = argc > 1 ? t_parse(argv[1], 4) : 4;
    unsigned long stack_mib = argc > 2 ? t_parse(argv[2], 32) : 32;
    t_require(count >= 1 && count <= MOST_THREADS, "1 to 64 threads");
    pthread_t threads[MOST_THREADS];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack_mib << 20);
    pthread_barrier_init(&all_started, NULL, (unsigned)count);
    pthread_barrier_init(&all_done, NULL, (unsigned)count);
    for (unsigned long i = 0; i < count; i++)
        t_require(!pthread_create(&threads[i], &attributes, work, (void *)(uintptr_t)i), "pthread_create");
    for (unsigned long i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    unsigned long distinct = 0;
    for (unsigned long i = 0; i < count; i++) {
        int seen = heaps[i] == 0;
        for (unsigned long j = 0; j < i; j++)
            seen |= heaps[j] == heaps[i];
        distinct += !seen;
    }
    t_fact("thread_stacks", count);
    t_fact("arena_heaps", distinct);
    t_print("stacks_arenas");
    return 0;
}
