/*
 * threads [N] [M]: N threads make M rounds of mixed calls each, all alive at the same time.
 * The first barrier makes every stack a new one, the second keeps it from being reused before all ran:
 * without them the number of stacks, and of the libc's own calls for them, would hang on timing.
 */
#include "truth.h"
#include <pthread.h>

#define MOST_THREADS 64
#define SLOTS 32

static unsigned long rounds = 2000;
static pthread_barrier_t all_started, all_done;

static void *work(void *argument) {
    unsigned long state = (unsigned long)(uintptr_t)argument;
    void *slots[SLOTS] = {0};
    pthread_barrier_wait(&all_started);
    for (unsigned long i = 0; i < rounds; i++) {
        unsigned slot = (unsigned)(t_next(&state) % SLOTS);
        size_t size = t_next(&state) % 3000;
        switch (t_next(&state) % 8) {
        case 0:
        case 1:
        case 2:
            t_free(slots[slot]);
            slots[slot] = t_malloc(size);
            break;
        case 3:
            t_free(slots[slot]);
            slots[slot] = t_calloc(size / 8 + 1, 8);
            break;
        case 4:
            slots[slot] = t_realloc(slots[slot], size + 1);
            break;
        case 5:
            t_free(slots[slot]);
            slots[slot] = t_posix_memalign(64, size);
            break;
        case 6:
            t_free(slots[slot]);
            slots[slot] = t_memalign(8, size);
            break;
        default:
            t_free(slots[slot]);
            slots[slot] = NULL;
        }
    }
    for (unsigned slot = 0; slot < SLOTS; slot++)
        t_free(slots[slot]);
    pthread_barrier_wait(&all_done);
    return NULL;
}

int main(int argc, char **argv) {
    unsigned long count = argc > 1 ? t_parse(argv[1], 4) : 4;
    if (argc > 2)
        rounds = t_parse(argv[2], rounds);
    t_require(count >= 1 && count <= MOST_THREADS, "1 to 64 threads");
    pthread_t threads[MOST_THREADS];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    /* Small stacks stay in the libc's cache of 40 MiB, so none is given back at a moment of its choosing. */
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    pthread_barrier_init(&all_started, NULL, (unsigned)count);
    pthread_barrier_init(&all_done, NULL, (unsigned)count);
    for (unsigned long i = 0; i < count; i++)
        t_require(!pthread_create(&threads[i], &attributes, work, (void *)(uintptr_t)(i + 1)), "pthread_create");
    for (unsigned long i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    t_fact("threads", count);
    t_print("threads");
    return 0;
}
